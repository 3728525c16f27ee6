"""Machines that this one is not, for the fit matrix: cards of a size, made of RPC devices.

A `ggml-rpc-server` on loopback lends the host's memory as a device (RPC0, RPC1). A machine is made
for llama.cpp by `--fit-target`: what the device reports, less what it should have. It may be
negative, so a card may be larger than this host: a dry run allocates nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.workplace import free_port, running
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.llamacpp.device_query import query_devices
from llamaswap_py.llamacpp.paths import engines_folder
from llamaswap_py.scheduler.feasibility import LEAST_MARGIN
from llamaswap_py.supervisor.rooms import lowered_margins
from llamaswap_py.units import GIB, HOST, MIB

MARGIN = GIB
"""What lswap leaves free of each device if the file says nothing; also llama.cpp's default."""
LEAST = MARGIN // LEAST_MARGIN
LOWERED = tuple(one[HOST] for one in lowered_margins({HOST: MARGIN}, {HOST: LEAST}))
"""What it leaves free for a model that nothing smaller makes fit; the last is the least."""
LENDER = "ggml-rpc-server"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine by its memory in GiB."""

    name: str
    cards: tuple[int, ...]
    host: int


MACHINES = (
    Machine("2 GiB card", (2,), 16),
    Machine("6 GiB card", (6,), 16),
    Machine("8 GiB card", (8,), 32),
    Machine("24 GiB card", (24,), 64),
    Machine("24 and 12 GiB cards", (24, 12), 64),
    Machine("host only", (), 16),
)


@dataclass(frozen=True, slots=True)
class Lent:
    """A device: its name, where it is lent and by which process, and the bytes it reports.

    Without an endpoint there is no such device here, and only formulas know it.
    """

    name: str
    endpoint: str = ""
    pid: int = 0
    reported: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices of a machine that a model may use, with their sizes."""

    machine: Machine
    devices: tuple[Lent, ...]
    sizes: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.devices)

    @property
    def args(self) -> tuple[str, ...]:
        """What the engine must be told to see these devices."""
        lent = [one.endpoint for one in self.devices if one.endpoint]
        return ("--rpc", ",".join(lent)) if lent else ()

    @property
    def engine_names(self) -> dict[str, str]:
        """The engine's names -> ours: it numbers the endpoints it is told of."""
        return {f"RPC{at}": one.name for at, one in enumerate(self.devices) if one.endpoint}

    def room(self, margin: int = MARGIN) -> dict[str, int]:
        """Return what models may take of each device."""
        return {name: max(size - margin, 0) for name, size in self.sizes.items()}

    @property
    def fit_target(self) -> str:
        """What llama.cpp must leave free of each device, in MiB, so that the margin is left."""
        if not self.devices:
            spare = psutil.virtual_memory().total - self.sizes[HOST] + MARGIN
            return str(spare // MIB)
        each = (one.reported - self.sizes[one.name] + MARGIN for one in self.devices)
        return ",".join(str(size // MIB) for size in each)


def placements(machine: Machine, devices: Sequence[Lent]) -> list[Placement]:
    """Return the sets of devices to try: each card alone, the smallest first, then all of them."""
    cards = [(size * GIB, device) for size, device in zip(machine.cards, devices, strict=False)]
    sets = [[one] for one in sorted(cards, key=lambda card: card[0])]
    if len(cards) != 1:
        sets.append(cards)
    found = []
    for chosen in sets:
        sizes = {device.name: size for size, device in chosen}
        found.append(
            Placement(machine, tuple(one for _, one in chosen), {**sizes, HOST: machine.host * GIB})
        )
    return found


def engine_that_lends() -> Engine | None:
    """Return an engine of this user that has a ggml-rpc-server beside it, None if none has."""
    folder = engines_folder()
    for lender in sorted(folder.parent.glob(f"*engines/*/bin/{LENDER}"), reverse=True):
        return locate_engine(str(lender.with_name("llama-server")))
    return None


@contextmanager
def lent_devices(engine: Engine, folder: Path, count: int) -> Iterator[list[Lent]]:
    """Lend so many devices of this host; without a ggml-rpc-server they have no endpoint."""
    program = engine.path.with_name(LENDER)
    if not program.exists():
        yield [Lent(f"CUDA{at}") for at in range(count)]
        return
    with ExitStack() as stack:
        lent = []
        for at in range(count):
            port = free_port()
            argv = [str(program), "--host", "127.0.0.1", "--port", str(port), "--device", "CPU"]
            pid = stack.enter_context(running(argv, port=port, log=folder / f"rpc-{at}.log"))
            lent.append(Lent(f"RPC{at}", f"127.0.0.1:{port}", pid))
        reported = _reported(engine, [one.endpoint for one in lent])
        yield [Lent(one.name, one.endpoint, one.pid, reported[one.name]) for one in lent]


def _reported(engine: Engine, endpoints: Sequence[str]) -> dict[str, int]:
    """Return the free bytes of each device, as the engine lists them."""
    return {one.name: one.free for one in query_devices(engine.path, os.environ, rpc=endpoints)}
