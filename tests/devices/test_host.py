"""Host memory under cgroups, and what processes hold, on made-up files."""

from __future__ import annotations

import os

import pytest

from llamaswap_py.devices.host import (
    held_by_process,
    process_trees,
    read_cache_room,
    read_host,
    read_host_total,
    sees_all_processes,
)
from tests.devices.roots import GIB, MIB, Root

UNLIMITED_V1 = "9223372036854771712\n"


def v2(root: Root, path: str, limit: str, current: int = 0, **stat: int) -> None:
    folder = f"sys/fs/cgroup/{path}"
    root.write(f"{folder}/memory.max", limit)
    root.write(f"{folder}/memory.current", str(current))
    rows = "".join(f"{name} {size}\n" for name, size in stat.items())
    root.write(f"{folder}/memory.stat", f"anon 1\n{rows}")


def v1(root: Root, path: str, limit: str, usage: int = 0, **stat: int) -> None:
    folder = f"sys/fs/cgroup/memory/{path}"
    root.write(f"{folder}/memory.limit_in_bytes", limit)
    root.write(f"{folder}/memory.usage_in_bytes", str(usage))
    rows = "".join(f"{name} {size}\n" for name, size in stat.items())
    root.write(f"{folder}/memory.stat", f"cache 1\n{rows}")


def host_of(root: Root) -> tuple[int, int, str]:
    """Return (total GiB, available GiB, source)."""
    memory = read_host(root.path)
    total, source = read_host_total(root.path)
    assert total == memory.total
    return total // GIB, memory.available // GIB, source


def test_without_cgroups_the_machine_counts(root: Root) -> None:
    assert host_of(root) == (64, 40, "psutil")


def test_the_smallest_limit_on_the_way_up_counts(root: Root) -> None:
    root.write("proc/self/cgroup", "0::/user.slice/lswap.service/inner\n")
    v2(root, "user.slice", f"{16 * GIB}\n", current=4 * GIB)
    v2(root, "user.slice/lswap.service", f"{32 * GIB}\n", current=2 * GIB)
    v2(root, "user.slice/lswap.service/inner", "max\n")
    assert host_of(root) == (16, 12, "cgroup")


def test_an_outer_group_that_is_fuller_bounds_what_is_free(root: Root) -> None:
    root.write("proc/self/cgroup", "0::/outer/inner\n")
    v2(root, "outer", f"{32 * GIB}\n", current=30 * GIB)  # others are in it too
    v2(root, "outer/inner", f"{16 * GIB}\n", current=GIB)
    assert host_of(root) == (16, 2, "cgroup")


def test_page_cache_of_a_group_is_free_memory(root: Root) -> None:
    root.write("proc/self/cgroup", "0::/box\n")
    cache = {"active_file": 3 * GIB, "inactive_file": 4 * GIB, "slab_reclaimable": GIB}
    v2(root, "box", f"{16 * GIB}\n", current=15 * GIB, shmem=5 * GIB, **cache)
    assert host_of(root) == (16, 9, "cgroup")


def test_where_it_throttles_counts_as_the_limit(root: Root) -> None:
    root.write("proc/self/cgroup", "0::/box\n")
    v2(root, "box", f"{16 * GIB}\n")
    root.write("sys/fs/cgroup/box/memory.high", f"{10 * GIB}\n")
    assert host_of(root) == (10, 10, "cgroup")


def test_version_one(root: Root) -> None:
    root.write("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/\n")
    cache = {"total_active_file": GIB, "total_inactive_file": 2 * GIB, "active_file": 9 * GIB}
    v1(root, "docker", UNLIMITED_V1)
    v1(root, "docker/abc", f"{12 * GIB}\n", usage=7 * GIB, **cache)
    assert host_of(root) == (12, 8, "cgroup")


@pytest.mark.parametrize("line", ["0::/\n", "0::/../../host/path\n", "0::/docker/not-here\n"])
def test_in_a_container_the_mounted_root_is_our_group(root: Root, line: str) -> None:
    root.write("proc/self/cgroup", line)
    v2(root, "", f"{8 * GIB}\n", current=GIB)
    assert host_of(root) == (8, 7, "cgroup")


def test_in_a_container_of_version_one_too(root: Root) -> None:
    root.write("proc/self/cgroup", "4:memory:/docker/not-here\n")
    v1(root, "", f"{8 * GIB}\n", usage=GIB)
    assert host_of(root) == (8, 7, "cgroup")


def test_a_limit_above_the_machine_is_none(root: Root) -> None:
    root.write("proc/self/cgroup", "0::/\n")
    v2(root, "", f"{500 * GIB}\n", current=64 * GIB)
    assert host_of(root) == (64, 40, "psutil")


def test_a_full_machine_leaves_less_than_the_limit(root: Root) -> None:
    root.memory(64 * GIB, 3 * GIB)
    root.write("proc/self/cgroup", "0::/\n")
    v2(root, "", f"{8 * GIB}\n", current=GIB)
    assert host_of(root) == (8, 3, "cgroup")


def test_a_limit_whose_use_cannot_be_read_is_unknown_not_zero(root: Root) -> None:
    root.write("proc/self/cgroup", "0::/\n")
    root.write("sys/fs/cgroup/memory.max", f"{8 * GIB}\n")
    with pytest.raises(OSError, match=r"memory\.stat"):
        read_host(root.path)
    assert read_host_total(root.path) == (8 * GIB, "cgroup")


def test_this_machine_can_be_read() -> None:
    memory = read_host()
    assert 0 < memory.available <= memory.total


def test_trees_hold_all_descendants(root: Root) -> None:
    root.process(10)
    root.process(11, parent=10, name="a) S 77 (b")  # a name may look like the rest of the line
    root.process(12, parent=11, name="caf\xe9")
    root.process(20)
    assert process_trees([10, 20, 99], root.path) == {10: {10, 11, 12}, 20: {20}, 99: {99}}


def test_a_process_holds_what_no_one_else_can_have(root: Root) -> None:
    root.process(10, RssAnon=3 * MIB, RssShmem=2 * MIB, RssFile=900 * MIB, VmLck=0)
    root.process(11, RssAnon=MIB, RssFile=900 * MIB, VmLck=800 * MIB)  # --mlock
    root.process(12, RssAnon=90 * MIB, RssFile=2 * MIB, VmLck=90 * MIB)  # with --no-mmap
    root.process(13)  # a zombie has no such lines
    held = [held_by_process(pid, root.path) for pid in (10, 11, 12, 13, 99)]
    assert held == [5 * MIB, 801 * MIB, 92 * MIB, 0, 0]


def test_without_proc_nothing_is_known(root: Root) -> None:
    assert held_by_process(10, root.path / "elsewhere") is None


def test_our_own_process_holds_something() -> None:
    held = held_by_process(os.getpid())
    assert held is not None
    assert held > MIB


def test_containers_are_recognised(root: Root) -> None:
    assert sees_all_processes(root.path)
    root.container(True)
    assert not sees_all_processes(root.path)
    assert not sees_all_processes(root.path / "elsewhere")


def test_the_page_cache_may_grow_into_what_nobody_has_mapped(root: Root) -> None:
    assert read_cache_room(root.path) == 40 * GIB
    root.write(
        "proc/meminfo",
        f"MemTotal: {64 << 20} kB\nMemAvailable: {40 << 20} kB\nMapped: {10 << 20} kB\n",
    )
    assert read_cache_room(root.path) == 30 * GIB
    root.write("proc/self/cgroup", "0::/inner\n")
    files = {"active_file": 3 * GIB, "inactive_file": 4 * GIB, "file_mapped": 2 * GIB}
    v2(root, "inner", f"{16 * GIB}\n", current=12 * GIB, **files)
    assert read_cache_room(root.path) == (16 - (12 - 7) - 2) * GIB
    root.write("proc/self/cgroup", "4:memory:/inner\n")
    v1(root, "inner", f"{8 * GIB}\n", usage=9 * GIB, total_mapped_file=GIB)
    assert read_cache_room(root.path) == 0
