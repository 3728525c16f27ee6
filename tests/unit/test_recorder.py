"""The recorder: everything that the scheduler hears is written, and nothing waits for the disk."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llamaswap_py
from llamaswap_py.cli.replay import run
from llamaswap_py.errors import StateError
from llamaswap_py.redaction import Redactor
from llamaswap_py.scheduler import Pool, PresetPlan, Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.types import ClientId, Failure, InstanceKey, PresetId, RequestId
from llamaswap_py.supervisor.recorder import Recorder, RunRecord
from llamaswap_py.units import KIB
from tests.scheduler.play import HOST, A, plan

if TYPE_CHECKING:
    from llamaswap_py.scheduler.actions import Action

PLANS = [plan("a", 40, fingerprint="sha of secrets"), plan("b", 80)]
POOLS = {HOST: Pool(100)}
KEY = InstanceKey(A, 1)


def arrival(name: str, client: str = "192.0.2.7") -> ev.RequestArrived:
    return ev.RequestArrived(request=RequestId(name), preset=A, client=ClientId(client))


def recorder(record: RunRecord, kind: type[Scheduler] = Scheduler) -> Recorder:
    return Recorder(record, kind(PLANS, POOLS), PLANS, POOLS)


def steps(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def serve_one(before: Recorder) -> list[Action]:
    """Load, answer one request, and let another be granted at once."""
    actions = before.handle(arrival("mine/1"), 1.0)
    actions += before.handle(ev.InstanceReady(KEY, 4), 2.0)
    assert before.grant_at_once(arrival("mine/2"), 3.0) is not None
    actions += before.handle(ev.RequestFinished(RequestId("mine/1")), 4.0)
    return actions


def test_it_writes_all_that_passes_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        actions = serve_one(recorder(record))
        again = Scheduler(PLANS, POOLS)
        assert actions[:2] == again.handle(arrival("mine/1"), 1.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    head, *told, end = steps(path)
    assert head["format"] == "lswap record"
    assert [one["event"][0] for one in told] == [
        *("RequestArrived", "InstanceReady", "RequestArrived", "RequestFinished"),
    ]
    assert [one.get("at_once", False) for one in told] == [False, False, True, False]
    assert end == {"line": 6, "end": "lswap ended"}
    assert run(path)


def test_a_request_that_is_not_granted_at_once_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        before = recorder(record)
        assert before.grant_at_once(arrival("r"), 1.0) is None
    assert len(steps(path)) == 2


def test_names_and_secrets_are_replaced(tmp_path: Path) -> None:
    """The same name gets the same replacement, or clients would not take turns as they did."""
    path = tmp_path / "run.record"
    failure = Failure("crashed", "it says --api-key lsk-abcdefghijkl", 1, ("what it wrote",))
    with RunRecord(path, Redactor({})) as record:
        before = recorder(record)
        for name, client in (("mine/1", "192.0.2.7"), ("mine/2", "192.0.2.7"), ("x/3", "key ann")):
            before.handle(arrival(name, client), 1.0)
        before.handle(ev.InstanceExited(KEY, failure), 2.0)
        before.handle(arrival("late/4"), 2.5)
    text = path.read_text()
    for private in ("mine", "x/3", "late", "192.0.2", "ann", "sha of", "abcdefg", "what it wrote"):
        assert private not in text
    clients = [one["event"][1]["client"] for one in steps(path)[1:4]]
    assert clients[0] == clients[1] != clients[2]
    assert [client[0] for client in clients] == ["a", "a", "k"]
    assert "it says --api-key [redacted]" in text
    assert run(path), "what was replaced makes no difference"


def test_a_record_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    for _ in range(2):
        with RunRecord(path) as record:
            serve_one(recorder(record))
    assert len(steps(path)) == len(steps(tmp_path / "run.record.1")) == 6
    assert sorted(os.listdir(tmp_path)) == ["run.record", "run.record.1"]


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lswap.yaml"
    path.write_text("models: {}\n")
    with pytest.raises(StateError, match=r"lswap.yaml is there, and is not a record .* another"):
        RunRecord(path)
    assert path.read_text() == "models: {}\n"
    assert os.listdir(tmp_path) == ["lswap.yaml"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("none/run.record", "No such file"), ("/dev/null", "a device"), (".", "a folder")],
)
def test_where_no_record_can_be_it_is_said(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(StateError, match=f"cannot be written: .*{words}.* - name another file"):
        RunRecord(tmp_path / name)


def test_a_long_record_ends_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path, most=64 * KIB) as record:
        before = recorder(record)
        for number in range(2_000):
            before.handle(ev.TimePassed(), float(number))
    assert 64 * KIB <= path.stat().st_size < 65 * KIB
    assert steps(path)[-1]["end"] == "it has grown to 64 KiB"
    assert "ends here, and lswap goes on: it has grown to 64 KiB" in caplog.text
    assert run(path)


def test_a_full_disk_ends_the_record_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("llamaswap_py.supervisor.recorder.os.write", full)
    with RunRecord(tmp_path / "run.record") as record:
        before = recorder(record)
        record._thread.join()
        assert serve_one(before)
    assert "ends here, and lswap goes on: No space left on device" in caplog.text


def test_a_disk_that_hangs_holds_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, write = threading.Event(), os.write

    def slow(fd: int, data: bytes) -> int:
        hangs.wait()
        return write(fd, data)

    monkeypatch.setattr("llamaswap_py.supervisor.recorder.os.write", slow)
    monkeypatch.setattr("llamaswap_py.supervisor.recorder._WAITING", 10_000)
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        before = recorder(record)
        for number in range(1_000):
            before.handle(ev.TimePassed(), float(number))
        assert "ends here, and lswap goes on: the disk is too slow" in caplog.text
    hangs.set()  # not before lswap has ended
    record._thread.join()
    assert steps(path)[-1]["end"] == "the disk is too slow"
    assert run(path)


class Broken(Scheduler):
    """A scheduler that fails at one kind of event, in the middle of it."""

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        actions = super().handle(event, now)
        if isinstance(event, ev.InstanceReady):
            self._effects.out = actions
            raise KeyError("mine/1")
        return actions

    def grant_at_once(self, event: ev.RequestArrived, now: float) -> Any:
        raise ValueError("mine/2")


def test_an_error_of_the_scheduler_is_written_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        before = recorder(record, Broken)
        before.handle(arrival("mine/1"), 1.0)
        with pytest.raises(KeyError):
            before.handle(ev.InstanceReady(KEY, 4), 2.0)
        assert before.begun(), "its actions are there to be carried out"
        with pytest.raises(ValueError, match="mine"):
            before.grant_at_once(arrival("mine/2"), 3.0)
    _, _, ready, at_once, _ = steps(path)
    assert ready["raised"] == "KeyError"
    assert [name for name, _ in ready["actions"]] == ["Note", "Grant"]
    assert (at_once["at_once"], at_once["raised"]) == (True, "ValueError")
    assert "mine" not in path.read_text()
    assert not run(path), "a scheduler that works comes to something else"
    assert "recorded: raised KeyError" in capsys.readouterr().out


def test_what_cannot_be_written_down_ends_the_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        before = recorder(record)
        before.handle(ev.LoadAsked(PresetId("\udcff")), 1.0)
        assert serve_one(before)
    assert steps(path)[-1]["end"] == "an event could not be written down"
    assert run(path)


def test_a_text_that_is_not_utf_8_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        before = recorder(record)
        before.handle(arrival("r"), 1.0)
        before.handle(ev.InstanceExited(KEY, Failure("crashed", "a\udcff.gguf is damaged")), 2.0)
    assert "a?.gguf is damaged" in path.read_text()
    assert run(path)


def test_every_event_goes_by_the_way_of_the_recorder() -> None:
    """Who told the scheduler directly would be missing in the record."""
    package = Path(llamaswap_py.__file__).parent
    direct = re.compile(r"scheduler\.(handle|grant_at_once|finish_at_once)\(")
    outside = [one for one in package.rglob("*.py") if one.name != "recorder.py"]
    found = [
        str(one)
        for one in outside
        if not {"scheduler", "simulator"} & set(one.relative_to(package).parts)
        and direct.search(one.read_text(encoding="utf-8"))
    ]
    assert not found


def test_plans_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    with RunRecord(path) as record:
        recorder(record)
    (first, *_), size = steps(path)[0]["plans"], len(PresetPlan.__dataclass_fields__)
    assert len(first) == size
