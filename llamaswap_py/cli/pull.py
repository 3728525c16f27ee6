"""`lswap pull`: chooses a quantisation that fits, downloads it, and adds it to a file."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.cli.quants import best, described, judge, least, verdict
from llamaswap_py.cli.tables import print_table
from llamaswap_py.config.edit import add_preset, check_free
from llamaswap_py.config.load import read_config
from llamaswap_py.config.sections import Memory
from llamaswap_py.errors import ConfigError, EngineError
from llamaswap_py.estimate.contexts import overheads_of
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.hub.api import list_repo, read_remote_header
from llamaswap_py.hub.cache import keep_listing
from llamaswap_py.hub.fetch import Order, Step, WantedFile, fetch
from llamaswap_py.hub.refs import (
    HubError,
    HubRef,
    builds_of,
    choose,
    heads_of,
    parse_ref,
    projector_of,
)
from llamaswap_py.llamacpp.binaries import locate_engine
from llamaswap_py.supervisor.device_lists import devices_for
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from llamaswap_py.cli.quants import Quant
    from llamaswap_py.devices import Device
    from llamaswap_py.estimate.contexts import Overheads
    from llamaswap_py.hub.api import RepoListing
    from llamaswap_py.hub.refs import Build


class Pulled(msgspec.Struct):
    """The downloaded model: where it fits, and its name in `config`.

    `heads` are the draft heads of its repository, as values of `spec-type`.
    """

    model: str
    hf: str
    file: str
    size: int
    fits: list[str]
    needs: dict[str, int]
    context: int
    contexts: dict[str, int]
    config: str | None = None
    heads: list[str] = []


def run(
    reference: str,
    *,
    config: Path | None,
    name: str | None,
    show: bool,
    ctx: int,
    as_json: bool = False,
) -> None:
    """Download what `reference` names; without a quantisation, one that fits with `ctx` tokens.

    Raises HubError and ConfigError.
    """
    ref = parse_ref(reference)
    called = name or ref.repo.rpartition("/")[2].removesuffix("-GGUF").lower()
    if config is not None and not show:
        check_free(config, called)
    listing = list_repo(ref)
    builds = builds_of(listing.files)
    build = choose(ref, builds) if ref.tag and not show else None
    room = {one.id: one.total - one.margin for one in _devices(config)}
    beside = _overheads(ref, listing, build, list(room), asked=ctx) if builds else None
    quants = [judge(one, room, beside) for one in builds]
    if show:
        _show(quants, as_json=as_json)
        return
    at = _choice(ref, builds, quants) if build is None else builds.index(build)
    build, quant = builds[at], quants[at]
    say = (lambda _: None) if as_json else print
    say(f"{ref.repo} {described(quant) if ref.tag else verdict(quants, at)}")
    first = build.files[0].path
    files = [*build.files, *filter(None, [projector_of(listing.files, first)])]
    wanted_files = tuple(WantedFile(file.path, file.size, file.sha256) for file in files)
    keep_listing(ref, listing.files)
    with _progress(shown=not as_json) as report:
        paths = fetch(Order(ref.repo, listing.commit, wanted_files), report)
    say(f"it is in {paths[0]}")
    wanted = HubRef(ref.repo, ref.tag or _tag_of(build, builds))
    heads = heads_of(listing.files, first)
    for kind, head in heads.items():
        say(
            f"the repository also has a draft head ({format_size(head.size)}): "
            f"`args: {{spec-type: {kind}}}` in the model's entry downloads and uses it"
        )
    if config is None:
        say(f"to use it, add to `models` in your file:\n  {called}:\n    hf: {wanted}")
    else:
        add_preset(config, called, {"hf": str(wanted)})
        say(f"{called} is added to {config}")
    if as_json:
        pulled = Pulled(
            called,
            str(wanted),
            str(paths[0]),
            build.size,
            quant.fits,
            quant.needs,
            quant.context,
            quant.contexts,
            None if config is None else str(config),
            list(heads),
        )
        print(msgspec.json.encode(pulled).decode())


def _tag_of(build: Build, builds: Sequence[Build]) -> str:
    """Return the model's name within its repository: its quantisation, else a path."""
    named = HubRef("", build.quant)
    unique = build.quant and choose(named, builds) == build
    return build.quant if unique else build.files[0].path


def _devices(config: Path | None) -> tuple[Device, ...]:
    """Return the devices of this machine, limited as the file says."""
    memory = Memory()
    if config is not None and config.exists():
        with suppress(ConfigError):  # this may be the file's first model
            memory = read_config(config).memory
    engine = None
    with suppress(EngineError):
        engine = locate_engine()
    return devices_for(engine if engine is not None and engine.backend != "cpu" else None, memory)


def _overheads(
    ref: HubRef, listing: RepoListing, build: Build | None, devices: Sequence[str], *, asked: int
) -> Overheads | None:
    """Read a header on the hub, of `build` or of any file. On failure print a line, return None."""
    try:
        any_build = build or choose(HubRef(ref.repo), builds_of(listing.files))
        projector = projector_of(listing.files, any_build.files[0].path)
        header = read_remote_header(ref, listing.commit, any_build.files[0])
        size = 0 if projector is None else projector.size
        return overheads_of(header, devices, asked=asked, projector=size)
    except (HubError, EstimateError) as error:
        said = f"judged by file sizes alone, without the context: {error.message}"
        print(said, file=sys.stderr)
        return None


def _choice(ref: HubRef, builds: Sequence[Build], quants: Sequence[Quant]) -> int:
    """Return the index of the quantisation to take; raises HubError if none fits."""
    if not builds:
        choose(ref, builds)  # raises a message that says so
    if (at := best(quants)) is not None:
        return at
    raise HubError(
        f"nothing of {ref.repo} fits here: the smallest takes about {least(quants)}",
        remedy="give a smaller --ctx, choose a smaller model, or name a QUANT all the same"
        " (--list shows them)",
    )


def _show(quants: Sequence[Quant], *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(quants).decode())
        return
    rows = [
        (one.quantisation, format_size(one.size), str(one.files), one.where or "-")
        for one in quants
    ]
    print_table(("quantisation", "size", "files", "fits"), rows)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[Step], None]]:
    """Draw a progress bar on a terminal; elsewhere print nothing."""
    if not (shown and sys.stdout.isatty()):
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    with Progress(
        "{task.description}", BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("downloading")

        def report(step: Step) -> None:
            bar.update(task, description=step.state, completed=step.done, total=step.total)

        yield report
