"""The ring of a child's log lines, and those who follow it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llamaswap_py.children.logs import ChildLog, LogFile, LogLine


def test_the_ring_is_bounded_in_lines_and_bytes() -> None:
    log = ChildLog(capacity=3, max_bytes=10)
    log.extend(["a", "b", "c", "d"])
    assert log.tail(9) == [LogLine(2, "b"), LogLine(3, "c"), LogLine(4, "d")]
    assert log.tail(1) == [LogLine(4, "d")]
    assert log.tail(0) == []
    log.append("123456789")
    assert [str(line) for line in log.tail(9)] == ["d", "123456789"]
    log.append("longer than all the room there is")
    assert [line.number for line in log.tail(9)] == [6]


@pytest.mark.anyio
async def test_followers_get_new_lines_and_end_with_the_log() -> None:
    log = ChildLog()
    log.append("old")
    started = asyncio.Event()

    async def read(after: int | None) -> list[str]:
        started.set()
        return [line.text async for line in log.follow(after)]

    async with asyncio.TaskGroup() as tasks:
        new = tasks.create_task(read(None))
        all_ = tasks.create_task(read(0))
        await started.wait()
        await asyncio.sleep(0)
        log.extend(["one", "two"])
        await asyncio.sleep(0)
        log.append("three")
        log.close()
    assert new.result() == ["one", "two", "three"]
    assert all_.result() == ["old", "one", "two", "three"]


@pytest.mark.anyio
async def test_a_slow_follower_is_told_what_it_missed() -> None:
    log = ChildLog(capacity=2)
    log.append("first")
    follower = log.follow(after=0)
    assert (await anext(follower)).text == "first"
    log.extend(["2", "3", "4", "5"])
    assert await anext(follower) == LogLine(3, "[2 lines skipped]")
    assert await anext(follower) == LogLine(4, "4")


@pytest.mark.anyio
async def test_a_follower_that_leaves_leaves_nothing() -> None:
    log = ChildLog()

    async def read() -> None:
        async for _ in log.follow():
            pass

    task = asyncio.get_running_loop().create_task(read())
    await asyncio.sleep(0)
    assert len(log._waiters) == 1
    task.cancel()
    await asyncio.wait([task])
    assert log._waiters == []


@pytest.mark.anyio
async def test_a_file_that_fails_is_told_once_and_again_when_it_works(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log"
    log = ChildLog()
    file = LogFile(path)
    path.parent.touch()
    for _ in range(2):
        file.write(b"lost\n")
        await file.flush(log)
    path.parent.unlink()  # a folder that is not there is made
    for _ in range(2):
        file.write(b"kept\n")
        await file.flush(log)
    assert path.read_bytes() == b"kept\nkept\n"
    assert [line.text for line in log.tail(9)] == [
        f"[log file {path}: Not a directory; it will lack lines]",
        f"[log file {path} is written again]",
    ]


@pytest.mark.anyio
async def test_what_a_slow_disk_cannot_take_is_dropped_and_said(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log")
    for _ in range(6):
        file.write(b"x" * 1024**2)
    await file.flush(ChildLog())
    text = (tmp_path / "log").read_bytes()
    assert text.endswith(b"[2097152 bytes of output dropped: the disk was too slow]\n")
    assert len(text) < 5 * 1024**2
