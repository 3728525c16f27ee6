"""Graphics cards as Linux shows them in sysfs, and AMD's memory figures. Needs no library.

Sources, in the kernel: Documentation/gpu/amdgpu/driver-misc.rst (mem_info_*) and
gpu/drm-usage-stats.rst (fdinfo), drivers/gpu/drm/amd/amdkfd/kfd_topology.c and kfd_process.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llamaswap_py.devices.host import ROOT

AMD: Final = "0x1002"
NVIDIA: Final = "0x10de"
INTEL: Final = "0x8086"

_APU_METRICS: Final = (2, 3)
_METRICS_REVISION: Final = 2
"""Position of the format in `metrics_table_header` (kgd_pp_interface.h): 1 cards, 2 and 3 APUs."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A GPU as the compute driver (KFD) numbers it; ROCm counts devices in the order of `node`."""

    node: int
    gpu_id: int
    bus_id: str
    unique_id: int
    has_cpu: bool


@dataclass(frozen=True, slots=True)
class Card:
    """One graphics card. Sizes in bytes, None if the driver does not tell.

    An APU's memory is the host's: `vram` is what the firmware carved out of it, `gtt` what the
    driver may take besides. `uuid` is ROCm's name for it, empty if it has none.
    """

    folder: Path
    bus_id: str
    vendor: str
    is_apu: bool = False
    vram: int | None = None
    gtt: int | None = None
    agent: Agent | None = None

    @property
    def uuid(self) -> str:
        known = self.agent is not None and self.agent.unique_id
        return f"GPU-{known:016x}" if known else ""


@dataclass(frozen=True, slots=True)
class SysfsMeter:
    """How to read a card again: the sum of these of its `pools` (`vram`, `gtt`)."""

    folder: Path
    bus_id: str
    pools: tuple[str, ...]
    gpu_id: int | None = None


def read_cards(root: Path = ROOT) -> tuple[Card, ...]:
    """Return all graphics cards in PCI bus order; empty where there is no sysfs."""
    agents = {agent.bus_id: agent for agent in read_agents(root)}
    cards = [
        _read_card(path / "device", agents)
        for path in (root / "sys/class/drm").glob("card*")
        if re.fullmatch(r"card\d+", path.name) and (path / "device/vendor").exists()
    ]
    return tuple(sorted(cards, key=lambda card: card.bus_id))


def _read_card(folder: Path, agents: Mapping[str, Agent]) -> Card:
    bus_id = _bus_id(folder)
    vendor = (folder / "vendor").read_text().strip()
    if vendor != AMD:
        return Card(folder, bus_id, vendor)
    agent = agents.get(bus_id)
    return Card(
        folder=folder,
        bus_id=bus_id,
        vendor=vendor,
        is_apu=_is_apu(folder) or (agent is not None and agent.has_cpu),
        vram=_number(folder / "mem_info_vram_total"),
        gtt=_number(folder / "mem_info_gtt_total"),
        agent=agent,
    )


def _bus_id(folder: Path) -> str:
    try:
        event = (folder / "uevent").read_text()
    except OSError:
        event = ""
    named = re.search(r"^PCI_SLOT_NAME=(.+)$", event, re.MULTILINE)
    return (named[1] if named else folder.resolve().name).lower()


def _is_apu(folder: Path) -> bool:
    try:
        with (folder / "gpu_metrics").open("rb") as file:
            header = file.read(_METRICS_REVISION + 1)
    except OSError:
        return False
    return len(header) > _METRICS_REVISION and header[_METRICS_REVISION] in _APU_METRICS


def read_agents(root: Path = ROOT) -> tuple[Agent, ...]:
    """Return the GPUs of the compute driver, in its order; empty without it."""
    agents = []
    for folder in (root / "sys/class/kfd/kfd/topology/nodes").glob("*"):
        gpu_id = _number(folder / "gpu_id")
        if folder.name.isdigit() and gpu_id:  # 0 is a CPU
            rows = _properties(folder / "properties")
            place = rows.get("location_id", 0)
            slot = f"{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
            agents.append(
                Agent(
                    node=int(folder.name),
                    gpu_id=gpu_id,
                    bus_id=f"{rows.get('domain', 0):04x}:{slot}",
                    unique_id=rows.get("unique_id", 0),
                    has_cpu=rows.get("cpu_cores_count", 0) > 0,
                )
            )
    return tuple(sorted(agents, key=lambda agent: agent.node))


def _properties(path: Path) -> dict[str, int]:
    try:
        rows = (line.split() for line in path.read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    except OSError:  # a GPU that this container may not use
        return {}


def rocm_pools(card: Card) -> tuple[str, ...]:
    """Return which memory ROCm allocates from.

    On an APU whose carve-out is smaller than its GTT, KFD puts everything into GTT and never uses
    the carve-out (`apu_prefer_gtt`, set in amdgpu_device.c if real_vram_size < gtt_size).
    """
    prefers_gtt = card.is_apu and card.vram is not None and (card.gtt or 0) > card.vram
    return ("gtt",) if prefers_gtt else ("vram",)


def vulkan_pools(card: Card) -> tuple[str, ...]:
    """Return which memory llama.cpp's Vulkan backend counts: on an integrated GPU every heap.

    `ggml_backend_vk_get_device_memory` in ggml-vulkan.cpp.
    """
    return ("vram", "gtt") if card.is_apu else ("vram",)


def read_memory(meter: SysfsMeter) -> tuple[int, int]:
    """Return (total, used) bytes; raises OSError or ValueError when the card does not answer."""

    def read(what: str) -> int:
        return sum(
            int((meter.folder / f"mem_info_{pool}_{what}").read_text()) for pool in meter.pools
        )

    return read("total"), read("used")


def held_on_card(pid: int, meter: SysfsMeter, *, own_ids: bool, root: Path = ROOT) -> int | None:
    """Return the bytes of a card that a process holds, None if that cannot be told.

    KFD counts what ROCm allocates, under the process ids of the host. Its figures are useless if
    ours differ (`own_ids` False). What Vulkan allocates is in the fdinfo of the process.
    """
    drawn = _held_by_files(pid, meter, root)
    if meter.gpu_id is None:
        return drawn
    if not own_ids:
        return None
    computed = _number(root / f"sys/class/kfd/kfd/proc/{pid}/vram_{meter.gpu_id}")
    return max(computed or 0, drawn or 0)


def _held_by_files(pid: int, meter: SysfsMeter, root: Path) -> int | None:
    """Return the sum over the card's open files of a process; one may be open several times."""
    clients: dict[str, int] = {}
    try:
        for path in (root / f"proc/{pid}/fdinfo").iterdir():
            rows = _fdinfo(path)
            if rows.get("drm-pdev", "").lower() == meter.bus_id:
                sizes = (rows.get(f"drm-memory-{pool}", "0") for pool in meter.pools)
                clients[rows.get("drm-client-id", path.name)] = sum(map(_kibibytes, sizes))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return None
    return sum(clients.values())


def _fdinfo(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # closed just now
        return {}
    rows = (line.partition(":") for line in lines if line.startswith("drm-"))
    return {name: value.strip() for name, _, value in rows}


def _kibibytes(text: str) -> int:
    """Return `12 KiB`, or plain bytes, in bytes; the format allows KiB and MiB."""
    number, _, unit = text.partition(" ")
    return int(number) * {"KiB": 1 << 10, "MiB": 1 << 20}.get(unit, 1)


def _number(path: Path) -> int | None:
    """Return the number in a file, None if the file is missing or does not hold a number."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
