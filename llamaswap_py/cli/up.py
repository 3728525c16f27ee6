"""`lswap up`: serves the models of a file until a signal.

Exit codes: 0 after a clean stop, also if a second signal hurried it; 1 if it could not start, 2 if
the configuration is wrong.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llamaswap_py.cli.init import serves_text
from llamaswap_py.cli.offer import offer_engine
from llamaswap_py.cli.show import device_line, memory_text, trouble_text
from llamaswap_py.cli.tables import table_text
from llamaswap_py.cli.version import commit, lswap_text
from llamaswap_py.errors import EngineError
from llamaswap_py.server import run as server
from llamaswap_py.supervisor.recorder import RunRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llamaswap_py.config.load import Origin
    from llamaswap_py.server.logging import OwnLog
    from llamaswap_py.snapshot import Snapshot


def run(
    origin: Origin,
    *,
    name: str | None,
    listen: tuple[str, ...] = (),
    host: str | None = None,
    port: int | None = None,
    record: Path | None = None,
    verbose: bool,
) -> None:
    """Serve until a signal. Raises LswapError if it cannot start."""
    commit()  # read it now: no file is opened while the event loop runs
    serve = partial(
        server.run,
        origin,
        greeting=banner,
        served_as=serves_text(origin),
        name=name,
        listen=listen,
        host=host,
        port=port,
        record=partial(_record, record) if record is not None else None,
        verbose=verbose,
    )
    try:
        serve()
    except EngineError:  # raised before anything was started
        if not offer_engine():
            raise
        serve()


def _record(path: Path, own_log: OwnLog) -> RunRecord:
    return RunRecord(path, own_log.redact, commit=commit())


def banner(
    snapshot: Snapshot,
    models: int | None = None,
    urls: Sequence[str] = (),
    estimated_now: Sequence[str] = (),
) -> str:
    """Return what a person wants to see first: where, with what, and which models.

    `models` is how many there are, if the snapshot does not have all; `urls` are the addresses
    that one can type; `estimated_now` are models whose memory is being worked out.
    """
    engine = snapshot.engine
    build = f"b{engine.build}-{engine.backend}" if engine.build else engine.backend
    using = f"with llama-server {build} ({engine.path})" if engine.path else "without llama-server"
    lines = [f"{lswap_text()} {using}"]
    lines += [f"  {device_line(device)}" for device in snapshot.devices]
    rows = [
        (
            f"  {model.id}",
            "failed" if model.failure else model.state,
            f"{model.context_per_request:,}" if model.context_per_request else "the model's",
            "estimating …" if model.id in estimated_now else memory_text(model.footprint),
            trouble_text(model) or model.chosen,
        )
        for model in snapshot.models[: server.SHOWN]
    ]
    lines += [table_text(("  model", "state", "context/request", "memory", ""), rows)]
    more = (models or len(snapshot.models)) - server.SHOWN
    if more > 0:
        lines.append(f"  and {more:,} more (lswap models)")
    lines.append(f"ready on {', '.join(urls or snapshot.listen)} (Ctrl-C drains and stops)")
    return "\n".join(lines)
