"""What one process uses: host memory by /proc/PID/smaps, GPU memory by NVML.

Host memory of a process is its share of every mapping (PSS), but of its own model files the mapped
pages (RSS) that it computes from: a second process on the same file halves the share, not the need.
Other pages of these files are page cache: they stay mapped after the weights were rearranged or
moved to a device, and the kernel may drop them. Page cache of files that were only read belongs to
no process. smaps_rollup is not enough, because it adds up the mapped model and the libraries.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llamaswap_py.devices.device import Device
from llamaswap_py.devices.host import held_by_process
from llamaswap_py.devices.nvml import Nvml, NvmlError, NvmlMeter
from llamaswap_py.units import HOST

_log: Final = logging.getLogger("lswap.devices")
_KIB: Final = 1024
_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True)
class HostUse:
    """Bytes: `own_files` mapped model files, `anonymous` heap and stacks, `other_files` rest."""

    own_files: int = 0
    anonymous: int = 0
    other_files: int = 0

    @property
    def total(self) -> int:
        """All that is resident, page cache included."""
        return self.kept(None)

    def kept(self, in_place: int | None) -> int:
        """Return the bytes that must stay: of its own files at most `in_place`; None is all."""
        own = self.own_files if in_place is None else min(self.own_files, in_place)
        return own + self.anonymous + self.other_files


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """Bytes per device. A device that was not read is in `unknown`; it never counts as zero."""

    devices: Mapping[str, int]
    unknown: tuple[str, ...] = ()
    host: HostUse | None = field(default=None, repr=False)


def read_process_use(
    pids: Collection[int],
    files: Collection[str],
    devices: Iterable[Device],
    in_place: int | None = None,
) -> ProcessUse:
    """Return what the processes together use of `devices` and the host. May take milliseconds.

    `files` are the model's own, and `in_place` the bytes of them that must stay mapped; None means
    all of them. A GPU on which NVML lists none of `pids` counts as unknown: in
    containers NVML hides processes, or gives them other ids.
    """
    found: dict[str, int] = {}
    unknown: list[str] = []
    hosts = [use for pid in pids if (use := read_host_use(pid, files)) is not None]
    host = None
    if hosts:
        host = HostUse(
            sum(one.own_files for one in hosts),
            sum(one.anonymous for one in hosts),
            sum(one.other_files for one in hosts),
        )
        found[HOST] = host.kept(in_place)
    else:
        unknown.append(HOST)
    gpus = [one for one in devices if one.id != HOST]
    used = read_gpu_use(frozenset(pids), gpus)
    unknown += [gpu.id for gpu in gpus if gpu.id not in used]
    return ProcessUse(found | used, tuple(unknown), host)


def read_host_use(pid: int, files: Collection[str]) -> HostUse | None:
    """Return the host memory of a process; None when it is gone.

    Of another user's process only anonymous, shared and locked memory is known.
    """
    try:
        with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="replace") as lines:
            own = {str(Path(file).resolve()) for file in files}
            use = parse_smaps(lines, own | set(files))
    except PermissionError:
        held = held_by_process(pid)
        return HostUse(anonymous=held) if held else None
    except OSError as error:
        _log.debug("cannot read the memory of process %d: %s", pid, error)
        return None
    # A process that is exiting has no mappings any more: its memory is unknown, not zero.
    return use if use.total else None


def parse_smaps(lines: Iterable[str], files: Collection[str]) -> HostUse:
    """Add up the lines of an smaps file (Linux, Documentation/filesystems/proc.rst). Pure."""
    own = anonymous = other = 0
    path = ""
    for line in lines:
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            size = int(rest.split()[0]) * _KIB
            mine = path.removesuffix(_DELETED) in files
            if mine and name == "Rss":
                own += size
            elif name == "Pss" and not mine:
                if path.startswith("/"):
                    other += size
                else:
                    anonymous += size
        elif " " in name:  # `55d0c000-55d0e000 r--p 00000000 fe:00 1234   /path`: no field's name
            fields = line.split(None, 5)
            path = fields[5].rstrip("\n") if len(fields) > 5 else ""
    return HostUse(own, anonymous, other)


def read_gpu_use(pids: Collection[int], gpus: Iterable[Device]) -> dict[str, int]:
    """Return device id -> bytes that NVML counts for `pids`; GPUs it cannot tell are left out.

    A GPU that lists only other processes is left out too: their ids may be of another namespace.
    """
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        nvml: Nvml | None = None
        for gpu in gpus:
            if not isinstance(gpu.meter, NvmlMeter):
                continue
            try:
                nvml = nvml or stack.enter_context(Nvml())
                listed = nvml.processes(gpu.meter)
            except NvmlError as error:
                _log.debug("%s does not list its processes: %s", gpu.id, error)
                continue
            sizes = [size for pid, size in listed.items() if pid in pids]
            if sizes and None not in sizes:
                found[gpu.id] = sum(size for size in sizes if size is not None)
    return found
