"""What a process uses, from smaps and from NVML."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.devices import Device
from llamaswap_py.devices import process_memory as pm
from llamaswap_py.devices.nvml import NvmlError, NvmlMeter
from llamaswap_py.devices.process_memory import (
    HostUse,
    parse_smaps,
    read_gpu_use,
    read_host_use,
    read_process_use,
)
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SMAPS = """\
55d0c8a00000-55d0c8c00000 r-xp 00000000 fe:00 1234                       /usr/bin/llama-server
Size:               2048 kB
Rss:                1000 kB
Pss:                 600 kB
Pss_Dirty:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0040000000 r--s 00000000 fe:00 5678                       /m/a model.gguf
Rss:              900000 kB
Pss:              450000 kB
7f0040000000-7f0050000000 r--s 00000000 fe:00 5679                       /m/b.gguf (deleted)
Rss:                 100 kB
Pss:                  50 kB
7f0050000000-7f0060000000 rw-p 00000000 00:00 0
Rss:                5000 kB
Pss:                5000 kB
Pss_Anon:           5000 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  40 kB
Pss:                  40 kB
"""


def test_mappings_are_told_apart() -> None:
    use = parse_smaps(SMAPS.splitlines(keepends=True), {"/m/a model.gguf", "/m/b.gguf"})
    # Of its own files all that is resident, of the others its share.
    assert use == HostUse(own_files=900100 * 1024, anonymous=5040 * 1024, other_files=600 * 1024)
    assert use.total == 905740 * 1024
    assert parse_smaps([], set()).total == 0


def test_pages_that_are_not_computed_from_are_page_cache() -> None:
    """A rearranged model keeps its file mapped; only what it computes from has to stay."""
    use = HostUse(own_files=900 * MIB, anonymous=800 * MIB, other_files=MIB)
    assert use.kept(100 * MIB) == 901 * MIB
    assert use.kept(1000 * MIB) == use.kept(None) == use.total == 1701 * MIB
    assert use.kept(0) == 801 * MIB


def test_a_real_process_with_a_mapped_model(tmp_path: Path) -> None:
    """A child maps 24 MiB of a sparse file and touches 16; a hole is memory once it is touched."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(24 * MIB)
    code = (
        "import mmap, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "total = sum(view[at] for at in range(0, 16 << 20, 4096))\n"
        "print('touched', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with (
        path.open("rb") as own,
        mmap.mmap(own.fileno(), 0, access=mmap.ACCESS_READ) as view,
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "touched\n"
        # This process has the same pages mapped: the child's share halves, its need does not.
        assert sum(view[at] for at in range(0, 16 * MIB, mmap.PAGESIZE)) == 0
        use = read_host_use(child.pid, [str(path)])
        stranger = read_host_use(child.pid, [])
        child.stdin.close()
    assert use is not None
    assert stranger is not None
    # The kernel may map a few pages around each touched one (fault-around).
    assert 16 * MIB <= use.own_files <= 17 * MIB
    assert use.anonymous > MIB
    assert stranger.own_files == 0
    assert 8 * MIB <= stranger.other_files - use.other_files <= 9 * MIB


def test_a_file_that_was_only_read_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(8 * MIB))
    with path.open("rb") as file:
        while file.read(1 * MIB):
            pass
    use = read_host_use(os.getpid(), [str(path)])
    assert use is not None
    assert use.own_files == 0


def test_a_measurement_leaves_pages_out_that_need_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(24 * MIB))
    host = [Device("host", MIB, 0, "psutil")]
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        assert sum(view[at] for at in range(0, 24 * MIB, mmap.PAGESIZE)) == 0
        whole = read_process_use([os.getpid()], [str(path)], host)
        part = read_process_use([os.getpid()], [str(path)], host, in_place=8 * MIB)
    assert part.host is not None
    assert part.devices["host"] == part.host.total - 16 * MIB
    assert 15 * MIB < whole.devices["host"] - part.devices["host"] < 17 * MIB


def test_a_link_to_the_model_is_the_model(tmp_path: Path) -> None:
    path, link = tmp_path / "model.gguf", tmp_path / "link.gguf"
    path.write_bytes(bytes(MIB))
    link.symlink_to(path)
    with (
        link.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        assert sum(view[at] for at in range(0, MIB, mmap.PAGESIZE)) == 0
        use = read_host_use(os.getpid(), [str(link)])
    assert use is not None
    assert use.own_files == MIB


def test_a_process_that_is_gone_is_unknown() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert read_host_use(child.pid, []) is None
    use = read_process_use([child.pid], [], [Device("host", MIB, 0, "psutil")])
    assert use.devices == {}
    assert use.unknown == ("host",)


class ScriptedNvml:
    """What the driver lists per GPU: pid -> bytes, or why not."""

    def __init__(self, lists: Mapping[str, Any]) -> None:
        self.lists = lists
        self.closed = False

    def __enter__(self) -> ScriptedNvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def processes(self, meter: NvmlMeter) -> Mapping[int, int | None]:
        found = self.lists[meter.uuid]
        if isinstance(found, Exception):
            raise found
        listed: Mapping[int, int | None] = found
        return listed


def gpu(name: str) -> Device:
    return Device(name, 10 * MIB, 0, "nvml", name.lower(), NvmlMeter(name.lower(), ""))


def test_gpus_that_do_not_tell_are_unknown_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    nvml = ScriptedNvml(
        {
            "cuda0": {me: 5 * MIB, 1: 7 * MIB},
            "cuda1": {1: 7 * MIB},
            "cuda2": {me: None},
            "cuda3": NvmlError("Not Supported"),
        }
    )
    monkeypatch.setattr(pm, "Nvml", lambda: nvml)
    names = ("CUDA0", "CUDA1", "CUDA2", "CUDA3")
    devices = [*map(gpu, names), Device("ROCm0", MIB, 0, "declared")]
    use = read_process_use([me], [], devices)
    assert use.devices["CUDA0"] == 5 * MIB
    assert use.unknown == ("CUDA1", "CUDA2", "CUDA3", "ROCm0")
    assert use.host is not None
    assert use.devices["host"] == use.host.total
    assert use.devices["host"] > MIB
    assert nvml.closed


def test_without_a_driver_nothing_is_known() -> None:
    class NoDriver(ScriptedNvml):
        def __enter__(self) -> ScriptedNvml:
            raise NvmlError("NVML Shared Library Not Found", absent=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pm, "Nvml", lambda: NoDriver({}))
        assert read_gpu_use([1], [gpu("CUDA0")]) == {}
