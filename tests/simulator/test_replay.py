"""A recorded run, replayed: the same decisions; what is not a whole record is refused in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from llamaswap_py import __version__
from llamaswap_py.cli.replay import run
from llamaswap_py.cli.simulate import run_either
from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Note
from llamaswap_py.scheduler.demand import Traffic
from llamaswap_py.scheduler.recording import (
    Hiding,
    RecordHead,
    encode_end,
    encode_head,
    encode_step,
    event_of,
    read_steps,
)
from llamaswap_py.scheduler.types import (
    Choice,
    ClientId,
    Failure,
    InstanceKey,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
    Remedy,
    RequestId,
)
from llamaswap_py.simulator.run_records import Case
from llamaswap_py.simulator.runner import simulate
from tests.simulator.random_cases import random_case


def recorded(case: Case) -> tuple[list[bytes], list[str]]:
    """Return the lines of a record of a simulated run, and the reasons of its decisions."""
    plans = tuple(model.plan() for model in case.models)
    scheduler = Scheduler(plans, case.pools, case.policy)
    head = RecordHead(
        lswap=__version__,
        at=1.8e9,
        began=0.0,
        plans=plans,
        pools=dict(case.pools),
        policy=case.policy,
    )
    lines = [encode_head(head, Hiding())]
    reasons: list[str] = []

    def watch(event: ev.Event, now: float, actions: list[Action]) -> None:
        lines.append(encode_step(len(lines) + 1, event, now, actions, Hiding()))
        reasons.extend(one.decision.reason for one in actions if isinstance(one, Note))

    simulate(case, scheduler, "lswap", watch)
    lines.append(encode_end(len(lines) + 1, "lswap ended"))
    return lines, reasons


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    found, _ = recorded(random_case(3))
    assert len(found) > 50
    return found


@pytest.fixture
def path(tmp_path: Path, lines: list[bytes]) -> Path:
    return written(tmp_path, lines)


def written(folder: Path, lines: list[bytes]) -> Path:
    path = folder / "run.record"
    path.write_bytes(b"".join(lines))
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def changed(line: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode() + b"\n"


@pytest.mark.parametrize("seed", range(40))
def test_the_same_events_give_the_same_decisions(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, reasons = recorded(random_case(seed, faults=True))
    assert run(written(tmp_path, lines), as_json=True)
    report = printed(capsys)
    assert report["events"] == len(lines) - 2
    assert (report["difference"], report["trouble"]) == (None, [])
    told = [row["reason"] for row in report["decisions"]]
    assert [reason for reason in told if reason in reasons] == reasons


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_decides_the_same(path: Path, seed: str) -> None:
    """Names hash otherwise there, so an order that depends on it would show."""
    words = [sys.executable, "-m", "llamaswap_py", "simulate", "--replay", str(path)]
    env = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all decisions are the same as recorded\n")


def test_the_table_says_when_and_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path)
    shown = capsys.readouterr().out
    assert re.search(rf"recorded .* by lswap {re.escape(__version__)}; models: m0, m1", shown)
    assert "LINE  SECONDS" in shown
    assert re.search(r"\n\d+ +[\d.]+ +RequestArrived +load +m\d#1 +p0: needs", shown)


def test_a_part_of_it_is_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, first=20, last=40, as_json=True)
    report = printed(capsys)
    assert report["events"] == 39  # from the second line on: what comes before is needed
    assert {row["line"] for row in report["decisions"]} <= set(range(20, 41))
    assert report["decisions"]


FULL = Choice(
    {PoolId("host"): 3, PoolId("CUDA0"): 2**40},
    (PoolId("CUDA0"),),
    "lean",
    "measured",
    {PoolId("host"): 0},
    (Remedy("parallel: 1", {PoolId("host"): 1}),),
    (("host", "2 GiB weights"),),
)
PLAN = PresetPlan(
    preset=PresetId("a"), choices=(FULL,), ttl=0.1, problem=Failure("args", "no such option")
)
KEY = InstanceKey(PresetId("a"), 7)
WRITTEN: tuple[ev.Event, ...] = (
    ev.RequestArrived(
        request=RequestId("r/1"),
        preset=PresetId("a"),
        client=ClientId("c"),
        since=0.1 + 0.2,
        patience=1e-9,
        allowed=frozenset({"a", "b"}),
    ),
    ev.ChoicesEstimated(PresetId("a"), (FULL,), 1 / 3, True),
    ev.TrafficRecalled(
        Traffic({PresetId("details"): (0.1, 0.2)}, {PresetId("tail"): (1.5,)}, {KEY.preset: {}}),
        3.0,
    ),
    ev.PresetsChanged((PLAN,)),
    ev.PoolsMeasured({PoolId("host"): Pool(2**62, 1, 2, True), PoolId("CUDA0"): Pool(1)}),
    ev.InstanceNoted(KEY, "kept", "2 slots"),
    ev.InstanceOutlived(KEY, "container ab12 (process 7, vllm) still runs"),
    ev.FilesRead(PresetId("a"), 1, 2, 3, 0.4, True),
    ev.DownloadFinished(PresetId("a"), PLAN),
)


@pytest.mark.parametrize("event", WRITTEN, ids=lambda one: type(one).__name__)
def test_an_event_is_read_as_it_was_written(event: ev.Event) -> None:
    """Down to the last bit of a number, and in the order of its devices."""
    line = encode_step(2, event, 0.1 + 0.2, (), Hiding())
    (step,) = read_steps([line], "record", until=2)
    found = event_of(step, "record")
    assert (found, step.at) == (event, 0.1 + 0.2)
    if isinstance(event, ev.PoolsMeasured):
        assert isinstance(found, ev.PoolsMeasured)
        assert list(found.pools) == list(event.pools)


@pytest.mark.parametrize("kind", get_args(ev.Event), ids=lambda kind: kind.__name__)
def test_every_kind_of_event_can_be_read(kind: type) -> None:
    """One whose fields have a form that JSON cannot give back would raise TypeError."""
    line = json.dumps({"line": 2, "at": 1.0, "event": [kind.__name__, {}]}).encode() + b"\n"
    (step,) = read_steps([line], "record", until=2)
    with contextlib.suppress(ConfigError):  # most of them need a field
        assert isinstance(event_of(step, "record"), kind)


def first_spawn(lines: list[bytes]) -> int:
    return next(at for at, line in enumerate(lines) if b'["Spawn"' in line)


def test_the_first_difference_is_named(
    lines: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = first_spawn(lines)
    other = lines[at].replace(b'["Spawn",{"instance":["m', b'["Spawn",{"instance":["other')
    assert other != lines[at]
    assert not run(written(tmp_path, [*lines[:at], other, *lines[at + 1 :]]))
    shown = capsys.readouterr().out
    assert f"line {at + 1} is the first that differs:" in shown
    assert 'recorded: Spawn {"instance":["other' in shown
    assert 'replayed: Spawn {"instance":["m' in shown


def test_decisions_that_were_not_made_are_named(
    lines: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = first_spawn(lines)
    lines = [*lines[:at], changed(lines[at], actions=[]), *lines[at + 1 :]]
    assert not run(written(tmp_path, lines), as_json=True)
    report = printed(capsys)
    assert report["differs_at"] == at + 1
    assert report["difference"]["recorded"] == ""
    assert report["difference"]["replayed"].startswith("Note ")


def test_an_error_of_the_scheduler_is_part_of_the_record(
    lines: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record of a failure that is mended by now replays to something else."""
    at = first_spawn(lines)
    lines = [*lines[:at], changed(lines[at], raised="KeyError"), *lines[at + 1 :]]
    assert not run(written(tmp_path, lines))
    shown = capsys.readouterr().out
    assert "recorded: raised KeyError" in shown
    assert "replayed: nothing more" in shown


def test_another_version_is_named_with_a_difference(
    lines: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = first_spawn(lines)
    lines = [changed(lines[0], lswap="9.9"), *lines[1:at], changed(lines[at], actions=[])]
    assert not run(written(tmp_path, lines))
    assert (
        f"the record is from lswap 9.9, and this is lswap {__version__}" in capsys.readouterr().out
    )


Lines = Callable[[list[bytes]], list[bytes]]
CUT: dict[str, tuple[Lines, str]] = {
    "in the middle of a line": (lambda all: [*all[:30], all[30][:40]], "record:31: .* incomplete"),
    "between two lines": (lambda all: all[:30], "stops after line 30 without an end - lswap was "),
    "a line is missing": (
        lambda all: [*all[:30], *all[31:]],
        "record:31: this line says that it is line 32: lines are missing",
    ),
    "a line is damaged": (
        lambda all: [*all[:30], b"{]\n", *all[31:]],
        "record:31: this line is damaged",
    ),
    "a time is missing": (
        lambda all: [*all[:30], b'{"line":31}\n', *all[31:]],
        "record:31: this line is damaged: .*at",
    ),
}


@pytest.mark.parametrize("how", CUT)
def test_what_is_cut_is_refused_and_its_beginning_replays(
    how: str, lines: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, words = CUT[how]
    path = written(tmp_path, cut(lines))
    with pytest.raises(ConfigError, match=words) as refused:
        run(path)
    assert "`--until 30` replays what comes before" in str(refused.value)
    assert capsys.readouterr().out == ""
    assert run(path, last=30, as_json=True)
    assert printed(capsys)["events"] == 29


FOREIGN: dict[str, tuple[Lines, str]] = {
    "empty": (lambda _: [], "run.record: this is not a record that `lswap up --record` has"),
    "a trace": (
        lambda _: [b'{"client": "c1", "model": "alpha", "at": 1, "service": 1.0}\n'],
        "not a record .* a trace of requests is read by --trace",
    ),
    "a file": (lambda _: [b"models:\n  alpha: {}\n"], "not a record"),
    "bytes": (lambda _: [bytes(range(256))], "not a record"),
    "newer": (
        lambda all: [changed(all[0], version=2, lswap="9.9"), *all[1:]],
        "has version 2, and lswap .* reads 1 - replay it with lswap 9.9",
    ),
    "older": (lambda all: [changed(all[0], version=0), *all[1:]], "has version 0"),
    "another head": (
        lambda all: [changed(all[0], plans=7), *all[1:]],
        "record:1: the head .*plans",
    ),
    "the head alone": (lambda all: all[:1], "stops after line 1 without an end"),
    "an unknown event": (
        lambda all: [all[0], changed(all[1], event=["Dreamt", {}]), *all[2:]],
        "record:2: this lswap has no event 'Dreamt' - replay it with the lswap that recorded it",
    ),
    "an event that is not one": (
        lambda all: [all[0], changed(all[1], event=["RequestArrived", {"request": 3}])],
        "record:2: RequestArrived is damaged: .*request",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_another_file_is_refused(what: str, lines: list[bytes], tmp_path: Path) -> None:
    other, words = FOREIGN[what]
    with pytest.raises(ConfigError, match=words):
        run(written(tmp_path, other(lines)))


@pytest.mark.parametrize(
    ("config", "trace", "replay", "words"),
    [
        (None, None, None, "there is no trace to simulate"),
        ("c.yaml", None, None, "there is no trace to simulate"),
        (None, "t.jsonl", None, "there has to be one file with the models"),
        (
            "c.yaml",
            None,
            "run.record",
            "--replay needs no --config, --models, --trace or",
        ),
    ],
)
def test_a_trace_or_a_record_is_given(
    config: str | None, trace: str | None, replay: str | None, words: str
) -> None:
    given = [None if one is None else Path(one) for one in (config, trace, replay)]
    with pytest.raises(ConfigError, match=f"{words}.* - give --trace and one of --config and"):
        run_either(given[0], None, given[1], (), "2GiB", given[2], (1, None), as_json=False)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the record cannot be read: No such file"):
        run(tmp_path / "none")
