"""Orphans: exactly the children of dead supervisors are killed, and nobody else's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from llamaswap_py.children import orphans
from llamaswap_py.children.orphans import InstanceRecord, SweptHow, new_record, sweep
from llamaswap_py.children.running_lswaps import start_time
from llamaswap_py.children.runtime_dir import RuntimeDir
from tests.unit.child_runs import alive

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own, as children are."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def dead_supervisor(record: InstanceRecord | None) -> InstanceRecord:
    """Return the record as a supervisor would have left it that is dead now."""
    assert record is not None
    return dataclasses.replace(record, supervisor_started=1)


def test_start_times_tell_processes_apart() -> None:
    own = start_time(os.getpid())
    assert own is not None
    assert own == start_time(os.getpid())
    with sleeper() as process:
        assert (start_time(process.pid) or 0) >= own
        process.kill()
        process.wait()
        assert start_time(process.pid) is None
    assert start_time(2**22 + 5) is None


def test_a_zombie_counts_as_gone() -> None:
    if sys.platform != "linux":
        pytest.skip("missing: Linux")
    with sleeper() as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) is None


def test_the_orphan_of_a_dead_supervisor_is_killed(tmp_path: Path) -> None:
    with sleeper() as process:
        record = dead_supervisor(new_record("a/b:c#1", process.pid, "/x/llama-server"))
        orphans.write_record(orphans.record_file(tmp_path, record.name), record)
        (swept,) = sweep(tmp_path)
        assert (swept.how, swept.record) == (SweptHow.KILLED, record)
        assert process.wait(60) == -9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"supervisor_started": None}, SweptHow.KEPT),  # the supervisor lives
        ({"started": 5}, SweptHow.GONE),  # the pid went to somebody else
        ({"boot": "another"}, SweptHow.GONE),  # the machine was restarted
        ({"namespace": "pid:[1]"}, SweptHow.KEPT),  # a container's pids
        ({"pid": 1}, SweptHow.GONE),
        ({"pid": 0}, SweptHow.GONE),
        ({"pid": -1}, SweptHow.GONE),
    ],
)
def test_anything_in_doubt_is_left_alone(
    tmp_path: Path, change: dict[str, object], how: SweptHow
) -> None:
    with sleeper() as process:
        record = dead_supervisor(new_record("a#1", process.pid, "/x"))
        if "supervisor_started" in change:
            change = {"supervisor_started": start_time(os.getpid())}
        changed = msgspec.convert({**dataclasses.asdict(record), **change}, InstanceRecord)
        orphans.write_record(orphans.record_file(tmp_path, changed.name), changed)
        assert [swept.how for swept in sweep(tmp_path)] == [how]
        assert len(list(tmp_path.iterdir())) == (how is SweptHow.KEPT)
        assert alive(process.pid)


def test_rubbish_among_the_records_is_removed(tmp_path: Path) -> None:
    (tmp_path / "half.tmp").write_text("{")
    (tmp_path / "bad.json").write_text("{}")
    assert sweep(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_only_dead_neighbours_are_swept(short_dir: Path) -> None:
    def choose(name: str) -> RuntimeDir:
        return RuntimeDir.choose(name=name, env={"XDG_RUNTIME_DIR": str(short_dir)})

    def leave(runtime: RuntimeDir, process: subprocess.Popen[bytes]) -> None:
        record = dead_supervisor(new_record("x#1", process.pid, "/x"))
        orphans.write_record(orphans.record_file(runtime.path / "instances", record.name), record)
        (runtime.path / "1.sock").touch()

    with sleeper() as mine, sleeper() as theirs, sleeper() as lost:
        with choose("dead") as dead:
            leave(dead, lost)
        with choose("living") as living, choose("own") as own:
            # Even records that look abandoned are theirs while they hold the lock.
            leave(living, theirs)
            leave(own, mine)
            swept = own.sweep_orphans()
            assert [item.how for item in swept] == [SweptHow.KILLED, SweptHow.KILLED]
            assert {mine.wait(60), lost.wait(60)} == {-9}
            assert alive(theirs.pid)
            assert (living.path / "1.sock").exists()
            assert not (own.path / "1.sock").exists()
            assert not (dead.path / "1.sock").exists()
            assert own.sweep_orphans() == []


def test_records_come_and_go(short_dir: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(short_dir)}
    long = "p/" * 200 + "#1"
    with RuntimeDir.choose(name="one", env=env) as runtime, sleeper() as process:
        records = runtime.path / "instances"
        for name in ("alpha#1", "alpha#2", long):
            runtime.record(name, process.pid, "/x/llama-server")
        assert len(list(records.iterdir())) == 3
        assert [item.how for item in runtime.sweep_orphans()] == [SweptHow.KEPT] * 3
        for name in ("alpha#1", "alpha#2", long, "never"):
            runtime.remove_record(name)
        assert list(records.iterdir()) == []
        process.kill()
        process.wait()
        runtime.record("dead#1", process.pid, "/x")
        assert list(records.iterdir()) == []
