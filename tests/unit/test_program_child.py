"""A child that is not a llama-server: where it listens, when it is ready, how it ends."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llamaswap_py.children import (
    ChildExited,
    ChildReady,
    ChildSpawned,
    ChildSpec,
    ChildStalled,
    FailureKind,
    Program,
)
from llamaswap_py.children.ask import get
from llamaswap_py.children.program import ProgramLines
from llamaswap_py.llamacpp.output import ListeningSign
from tests.fakes import fake_program
from tests.unit.child_runs import make_spec, running

pytestmark = pytest.mark.anyio
HEALTH = {"http": "/health", "line": None}
LINE = {"http": None, "line": r"running on \S+ with"}


def spec_of(
    folder: Path, ready: dict[str, Any] = HEALTH, *, socket: bool = False, **changes: Any
) -> ChildSpec:
    program = Program(**ready, cwd=str(folder))
    spec = make_spec(
        sys.executable,
        folder,
        args=(str(fake_program.__file__), "{socket}" if socket else "{port}", "--x={port}!"),
        child_mode=False,
        **changes,
    )
    if not socket:
        spec = dataclasses.replace(spec, socket_path=None)
    return dataclasses.replace(spec, program=program)


@pytest.mark.parametrize("ready", [HEALTH, LINE])
@pytest.mark.parametrize("socket", [False, True])
async def test_ready_and_stop(short_dir: Path, ready: dict[str, Any], socket: bool) -> None:
    spec = spec_of(short_dir, ready, socket=socket, env={"PROGRAM_CHATTER": "1", "MINE": "yes"})
    async with running(spec) as run:
        event = await run.seen(ChildReady)
        assert (event.slots, event.n_ctx) == (1, None)
        assert (event.endpoint.path is not None) == socket
        told = json.loads((await get(event.endpoint, "/env", 10)).body)
        listens_on = spec.socket_path if socket else str(event.endpoint.port)
        assert told["argv"][1] == listens_on
        if not socket:
            assert told["argv"][2] == f"--x={event.endpoint.port}!"
        assert told["cwd"] == str(short_dir)
        assert told["env"]["MINE"] == "yes"
        assert told["env"].get("XDG_CONFIG_HOME", "") != "/dev/null/empty"
        assert "LLAMA_SERVER_ROUTER_PORT" not in told["env"]
        run.child.stop()
        exited = await run.ended()
    assert (exited.code, exited.failure) == (0, None)
    assert exited.tail.count("told to end") == 1, "one SIGTERM is enough"


async def test_it_is_not_ready_before_it_says_so(short_dir: Path) -> None:
    spec = spec_of(short_dir, env={"PROGRAM_SECONDS": "0.5"})
    async with running(spec) as run:
        event = await run.seen(ChildReady)
        assert (await get(event.endpoint, "/health", 10)).status == 200


async def test_a_line_that_never_comes_is_a_stall(short_dir: Path) -> None:
    spec = spec_of(short_dir, {"http": None, "line": "never said"}, load_stall=0.5)
    async with running(spec) as run:
        await run.seen(ChildStalled)
        assert not [event for event in run.events if isinstance(event, ChildReady)]
        run.child.stop()
        exited = await run.ended()
        assert exited.failure is not None
        assert exited.failure.kind is FailureKind.TIMEOUT


async def test_one_that_ends_says_why_in_its_own_name(short_dir: Path) -> None:
    async with running(spec_of(short_dir, env={"PROGRAM_EXIT": "3"})) as run:
        exited = await run.ended()
    assert (exited.code, exited.signal) == (3, None)
    assert exited.failure is not None
    name = Path(sys.executable).name
    assert exited.failure.summary == (
        f"{name} ended with exit code 3: error: there is no such weight"
    )


async def test_one_that_will_not_end_is_killed(short_dir: Path) -> None:
    spec = spec_of(short_dir, env={"PROGRAM_IGNORE_TERM": "1"}, stop_timeout=0.5)
    async with running(spec) as run:
        await run.seen(ChildReady)
        run.child.stop()
        exited = await run.ended()
    assert exited.signal == 9
    assert exited.failure is None
    assert "did not stop within 0.5 s" in exited.tail[-1]


async def test_one_that_cannot_be_run(short_dir: Path) -> None:
    spec = dataclasses.replace(spec_of(short_dir), binary=str(short_dir / "none"))
    async with running(spec) as run:
        exited = await run.ended()
    assert exited.failure is not None
    assert exited.failure.kind is FailureKind.ENGINE
    spec = dataclasses.replace(spec_of(short_dir, socket=True), socket_path=None)
    async with running(spec) as run:
        exited = await run.ended()
        assert not [event for event in run.events if isinstance(event, ChildSpawned)]
        assert isinstance(exited, ChildExited)
    assert exited.failure is not None
    assert "use {port}" in exited.failure.summary


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("listening", "now listening on 1", True),
        ("listening", "now idle", False),
        ("a.c", "xabcx", True),
        ("a.c", "literally a.c", True),
        ("ready (port", "it is ready (port 1)", True),
        ("^up$", "cup", False),
        ("up", "\x1b[32mu\x1b[0mp", True),
    ],
)
def test_lines(text: str, line: str, says: bool) -> None:
    signs = ProgramLines(Program(None, text, "/")).feed("stdout", line)
    assert any(isinstance(sign, ListeningSign) for sign in signs) == says
    assert len(ProgramLines(Program("/x", None, "/")).feed("stderr", line)) == 1
