"""`lswap engine compare OLD NEW`: what a new build of llama.cpp changed for lswap.

It compares the options by `--help`, the routes by asking both, and the log lines of a start, a
request and a stop: those that no rule of lswap reads, and rules that find no line any more.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from llamaswap_py.demo.trial import Trial, try_engine
from llamaswap_py.llamacpp.log_changes import LogChanges, compare_logs
from llamaswap_py.llamacpp.option_changes import Gone, OptionChanges, compare_options
from llamaswap_py.llamacpp.server_routes import ROUTES, Role, named_in, role_of

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.probe import Engine

_KEYS: Final = {
    None: "lswap has no rule for it: it needs an admin key",
    Role.INFERENCE: "",
    Role.SLOTS: "it needs a key with the right `slots`",
    Role.ADMIN: "it needs an admin key",
}
_MOST_ADDED: Final = 40
_MOST_GONE: Final = 5
"""Lines of a log that are printed. Lines that are gone matter only to a rule, which says so."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two engines, and all that differs."""

    old: str
    new: str
    features: dict[str, tuple[bool, bool]]
    options: OptionChanges
    new_routes: list[str]
    gone_routes: list[str]
    trial: dict[str, tuple[str, str]]
    log: LogChanges


def compare_engines(old: Engine, new: Engine) -> Comparison:
    """Run both, and return what differs; raises EngineError if one does not get ready."""
    first, second = asyncio.run(_try_both(old, new))
    names = asdict(old.features)
    features = {
        name: (value, getattr(new.features, name))
        for name, value in names.items()
        if value != getattr(new.features, name)
    }
    return Comparison(
        old=old.label,
        new=new.label,
        features=features,
        options=compare_options(old.options, new.options),
        new_routes=[_route(*one) for one in sorted(second.routes - first.routes)],
        gone_routes=[_route(*one) for one in sorted(first.routes - second.routes)],
        trial=_behaviour(first, second),
        log=compare_logs(first.log, second.log),
    )


async def _try_both(old: Engine, new: Engine) -> tuple[Trial, Trial]:
    paths = {path.replace(":id_slot", "0") for _, path in ROUTES}
    for engine in (old, new):
        for file in _binaries(engine.path):
            paths |= named_in(await asyncio.to_thread(file.read_bytes))
    with tempfile.TemporaryDirectory(prefix="lswap-compare-") as name:
        return (
            await try_engine(old, Path(name), paths),
            await try_engine(new, Path(name), paths),
        )


def _binaries(server: Path) -> list[Path]:
    """Return the files that may hold the routes: the binary, and its libraries in that folder."""
    real = server.resolve()
    return [real, *sorted(real.parent.glob("lib*server*.so*"))]


def _route(method: str, path: str) -> str:
    note = _KEYS[role_of(method, path)]
    return f"{method} {path}" + (f"  ({note})" if note else "")


def _behaviour(first: Trial, second: Trial) -> dict[str, tuple[str, str]]:
    texts = ("ready", "progress", "answer", "stop")
    found = {name: (getattr(first, name), getattr(second, name)) for name in texts}
    for what, kind in first.failures.items():
        found[what] = (kind, second.failures[what])
    return found


# What is printed


def print_comparison(found: Comparison) -> None:
    """Print what differs, in sections, and the behaviour in full; an empty section says so."""
    typer.echo(f"{found.old} → {found.new}")
    for title, lines in _sections(found):
        typer.echo(f"\n{title}" + ("" if lines else ": no difference"))
        for line in lines:
            typer.echo(f"  {line}")


def _sections(found: Comparison) -> Iterator[tuple[str, list[str]]]:
    yield (
        "what lswap uses if it is there",
        [f"{'+' if now else '-'} {name}" for name, (_, now) in found.features.items()],
    )
    yield "options", list(_option_lines(found.options))
    yield (
        "routes",
        [*(f"+ {one}" for one in found.new_routes), *(f"- {one}" for one in found.gone_routes)],
    )
    yield (
        "a start, a request, a stop, and what cannot be loaded",
        [
            f"{what}: {was} → {now}" if was != now else f"{what}: {now}, as before"
            for what, (was, now) in found.trial.items()
        ],
    )
    log = found.log
    yield (
        f"log lines of a start, a request and a stop ({log.same} as before)",
        [
            *(
                f"! no line for the rule `{rule}` any more: {line}"
                for line, rule in log.unread.items()
            ),
            *_some("+", log.added, _MOST_ADDED),
            *_some("-", log.gone, _MOST_GONE),
        ],
    )


def _some(mark: str, lines: Sequence[str], most: int) -> Iterator[str]:
    """Yield the first lines, and how many more there are."""
    shown = lines if len(lines) <= most + 1 else lines[:most]
    yield from (f"{mark} {line}" for line in shown)
    if more := len(lines) - len(shown):
        yield f"{mark} and {more} more, which `--json` lists; no rule of lswap reads them"


def _option_lines(changes: OptionChanges) -> Iterator[str]:
    yield from (f"+ {name}" for name in changes.added)
    yield from map(_gone_line, changes.gone)
    for one in changes.respelled:
        parts = [f"now also {', '.join(one.gained)}"] if one.gained else []
        parts += [f"no longer {', '.join(one.lost)}"] if one.lost else []
        yield f"~ {one.name}: {'; '.join(parts)}"
    for each in changes.revalued:
        before, after = each.before or "(nothing)", each.after or "(nothing)"
        yield f"~ {each.name}: {each.what} {before} → {after}"


def _gone_line(one: Gone) -> str:
    if one.passed:
        what = "lswap leaves it out"
    elif one.instead:
        what = f"lswap writes {' '.join(one.instead)}"
    else:
        what = "a model with it in `args` is refused"
    said = f"; the engine says: {one.said}" if one.said else ""
    return f"- {one.name}: {what}{said}"


def as_record(found: Comparison) -> dict[str, Any]:
    """Return the same for `--json`."""
    record = asdict(found)
    for key in ("features", "trial"):
        record[key] = {what: {"old": was, "new": now} for what, (was, now) in record[key].items()}
    return record
