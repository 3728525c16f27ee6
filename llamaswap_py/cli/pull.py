"""`lswap pull`: choose a quantisation by what fits, fetch it, and add it to a file."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.cli.show import print_table
from llamaswap_py.devices import read_devices
from llamaswap_py.editing import add_preset
from llamaswap_py.hub.fetch import Order, Step, Wanted, fetch
from llamaswap_py.hub.listing import list_repo
from llamaswap_py.hub.refs import Build, HubError, HubRef, builds_of, choose, parse_ref
from llamaswap_py.hub.refs import projector_of as projector_in
from llamaswap_py.units import GIB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from llamaswap_py.devices import Device

_BESIDE: Final = 1.1
"""What a model takes beside its weights, as a share of them: a usual context and its buffers."""
_MARGIN: Final = GIB


class Quant(msgspec.Struct):
    """One quantisation of a repository: bytes, and the devices it fits alone."""

    quantisation: str
    size: int
    files: int
    fits: list[str]


class Pulled(msgspec.Struct):
    """What was fetched, and what its preset is called in `config`."""

    model: str
    hf: str
    file: str
    size: int
    fits: list[str]
    config: str | None = None


def run(
    reference: str, *, config: Path | None, name: str | None, show: bool, as_json: bool = False
) -> None:
    """Fetch what `reference` names. Raises HubError and ConfigError."""
    ref = parse_ref(reference)
    listing = list_repo(ref)
    builds = builds_of(listing.files)
    devices = _devices()
    if show:
        _show(builds, devices, as_json=as_json)
        return
    build = choose(ref, builds) if ref.tag else _largest(ref, builds, devices)
    files = [*build.files, *filter(None, [projector_in(listing.files)])]
    order = Order(
        ref.repo,
        listing.commit,
        tuple(Wanted(file.path, file.size, file.sha256) for file in files),
    )
    where = _fits(build, devices)
    say = (lambda _: None) if as_json else print
    fits = ", ".join(where) or "no device here"
    say(f"{ref.repo} {build.quant}: {format_size(build.size)}, fits {fits}")
    with _progress(shown=not as_json) as report:
        paths = fetch(order, report)
    say(f"it is in {paths[0]}")
    wanted = HubRef(ref.repo, ref.tag or build.quant or build.files[0].path)
    called = name or ref.repo.rpartition("/")[2].removesuffix("-GGUF").lower()
    if config is None:
        say(f"use it in a file:\n  {called}:\n    hf: {wanted}")
    else:
        add_preset(config, called, {"hf": str(wanted)})
        say(f"{called} is added to {config}")
    if as_json:
        into = None if config is None else str(config)
        pulled = Pulled(called, str(wanted), str(paths[0]), build.size, where, into)
        print(msgspec.json.encode(pulled).decode())


def _devices() -> tuple[Device, ...]:
    backends = frozenset({"cpu", "cuda", "rocm", "vulkan", "metal"})
    return read_devices(None, lambda _: _MARGIN, backends=backends, environment=os.environ)


def _needs(build: Build) -> int:
    return round(build.size * _BESIDE)


def _fits(build: Build, devices: Sequence[Device]) -> list[str]:
    """Return the devices that a model would fit on alone, by rule of thumb."""
    return [one.id for one in devices if _needs(build) <= one.total - one.margin]


def _largest(ref: HubRef, builds: Sequence[Build], devices: Sequence[Device]) -> Build:
    """Return the largest that fits a card, else the host, but nothing above 8 bits; else raise."""
    if not builds:
        return choose(ref, builds)  # which says so
    cards = [one for one in devices if one.id != "host"] or list(devices)
    usual = [one for one in builds if not one.quant.startswith(("F16", "F32", "BF16"))] or builds
    fitting = [one for one in usual if _fits(one, cards)] or [
        one for one in usual if _fits(one, devices)
    ]
    if fitting:
        return fitting[-1]
    least = format_size(_needs(builds[0]))
    raise HubError(
        f"nothing of {ref.repo} fits here: the smallest takes about {least}",
        remedy="name one all the same (--list shows them), or a smaller model",
    )


def _show(builds: Sequence[Build], devices: Sequence[Device], *, as_json: bool) -> None:
    quants = [
        Quant(one.quant or one.files[0].path, one.size, len(one.files), _fits(one, devices))
        for one in builds
    ]
    if as_json:
        print(msgspec.json.encode(quants).decode())
        return
    rows = [
        (one.quantisation, format_size(one.size), str(one.files), ", ".join(one.fits) or "-")
        for one in quants
    ]
    print_table(("quantisation", "size", "files", "fits"), rows)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[Step], None]]:
    """Draw a bar on a terminal; elsewhere say nothing."""
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
