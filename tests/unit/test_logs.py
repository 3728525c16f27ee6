"""lswap's own log, secrets in what is shown, and files that are set aside."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.children.logs import ChildLog, LogFile
from llamaswap_py.redaction import REDACTED, Redactor, redact_args, secret_values
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Note
from llamaswap_py.scheduler.types import ClientId, Decision, PresetId, RequestId
from llamaswap_py.server import logging as cli_log
from llamaswap_py.supervisor.event_log import EventLog

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "hf_" + "abcdefghij" * 3


# --- secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {REDACTED}"),
        ('{"authorization": "Bearer 0123456789abc"}', f'{{"authorization": "Bearer {REDACTED}"}}'),
        ('"x-api-key": "abc"', f'"x-api-key": "{REDACTED}"'),
        ("run --api-key s3 --port 1", f"run --api-key {REDACTED} --port 1"),
        ("--hf-token=abc,", f"--hf-token={REDACTED},"),
        ("HF_TOKEN=abc x", f"HF_TOKEN={REDACTED} x"),
        ("AWS_SECRET_ACCESS_KEY='abc'", "AWS_SECRET_ACCESS_KEY='abc'"),  # quoted: by its value
        (f"got {TOKEN}.", f"got {REDACTED}."),
        ("lsk-0123456789_abc-def", REDACTED),
        ("value of a is hunter22!", f"value of a is {REDACTED}!"),
        ("n_tokens=17, EOS token = 2", "n_tokens=17, EOS token = 2"),
        ("a bearer token is missing", "a bearer token is missing"),
        ("--api-key-file /etc/keys", "--api-key-file /etc/keys"),
        ("task-12 sk-1", "task-12 sk-1"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert Redactor({"MY_PASSWORD": "hunter22", "HOME": "value of"})(text) == shown


def test_which_variables_are_secret() -> None:
    env = {
        "HF_TOKEN": "t0ken-of-mine",
        "openai_api_key": "k-longer-than-that",
        "SHORT_KEY": "models",
        "KEYBOARD": "a-long-enough-layout",
        "TOKENIZERS_PARALLELISM": "false-and-long",
    }
    assert secret_values(env) == {"t0ken-of-mine", "k-longer-than-that"}
    longer = Redactor({"A_KEY": "abcdefgh", "B_KEY": "abcdefghij"})
    assert longer("abcdefghij abcdefgh") == f"{REDACTED} {REDACTED}"


def test_command_lines_are_shown_without_secrets() -> None:
    args = ("--model", "a b.gguf", "--api-key", "one two", "--hf-token=x", "--ctx-size", "8")
    shown = ("--model", "a b.gguf", "--api-key", REDACTED, f"--hf-token={REDACTED}")
    assert redact_args(args) == (*shown, "--ctx-size", "8")
    assert redact_args(("--api-key", "--api-key", "x")) == ("--api-key", REDACTED, "x")


# --- formats


def make_record(text: str, *, level: int = logging.WARNING, **about: Any) -> logging.LogRecord:
    record = logging.LogRecord("lswap", level, "", 0, text, None, None)
    record.about = about
    return record


def test_json_has_members_of_its_own_and_no_secrets() -> None:
    line = cli_log.JsonFormatter(Redactor()).format(
        make_record(f"über {TOKEN}\nend", request="r-1", status=502)
    )
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == f"über {REDACTED}\nend"
    assert (entry["request"], entry["status"], entry["level"]) == ("r-1", 502, "warning")


def test_pretty_has_colours_where_they_are_seen() -> None:
    plain = cli_log.PrettyFormatter(Redactor()).format(make_record(f"x {TOKEN}"))
    assert plain.endswith(f" WARNING x {REDACTED}")
    assert "\x1b" not in plain
    coloured = cli_log.PrettyFormatter(Redactor(), colours=True)
    assert coloured.format(make_record("x")).startswith("\x1b[33m")
    assert "\x1b" not in coloured.format(make_record("x", level=logging.INFO))


def test_the_journal_gets_levels_and_no_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        status = os.fstat(stderr.fileno())
        env = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        formatter = cli_log._formatter("auto", env)
        assert formatter.format(make_record("x\ny")) == "<4>x\n<4>    y"
        assert isinstance(cli_log._formatter("pretty", env), cli_log.PrettyFormatter)
        other = cli_log._formatter("auto", {"JOURNAL_STREAM": "8:1"})
        assert isinstance(other, cli_log.PrettyFormatter)


class Stuck(logging.Handler):
    """A handler that cannot write until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.got: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert self.go.wait(60)
        self.got.append(record.getMessage())


def test_a_log_that_cannot_be_written_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_log, "_WAITING", 3)
    logger, stuck = logging.getLogger("lswap"), Stuck()
    monkeypatch.setattr(logger, "handlers", [stuck])
    monkeypatch.setattr(logger, "propagate", False)
    with cli_log.logging_aside():
        for number in range(20):
            logger.warning("line %d", number)  # returns, though nothing can be written
        stuck.go.set()
    assert logger.handlers == [stuck]
    lines = [text for text in stuck.got if text.startswith("line")]
    (dropped,) = [text for text in stuck.got if "dropped" in text]
    assert lines[:3] == ["line 0", "line 1", "line 2"]
    assert int(dropped.split()[0]) == 20 - len(lines)


# --- the request behind a decision


def test_a_decision_names_the_request_that_brought_it_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decision = Decision(1, 0.0, "load", PresetId("alpha"), 1, "a request waits")
    arrived = ev.RequestArrived(
        request=RequestId("client/7/3"), preset=PresetId("alpha"), client=ClientId("c")
    )
    with caplog.at_level(logging.INFO, "lswap"):
        EventLog().record(arrived, [Note(decision)])
        EventLog().record(ev.TimePassed(), [Note(decision)])
    first, second = caplog.records
    assert first.getMessage() == "load alpha#1: a request waits (request client/7)"
    assert first.__dict__["about"]["request"] == "client/7"
    assert first.__dict__["about"]["instance"] == "alpha#1"
    assert second.getMessage() == "load alpha#1: a request waits"


# --- files


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.anyio
async def test_files_are_set_aside_and_three_are_kept(tmp_path: Path) -> None:
    file, log = LogFile(tmp_path / "a.log", rotate=10), ChildLog()
    for number in range(6):
        file.write(b"life %d\n" % number)
        await file.flush(log)
        assert log.tail(9) == []
    # two lines reach ten bytes
    assert contents(tmp_path) == {
        "a.log.1": "life 4\nlife 5\n",
        "a.log.2": "life 2\nlife 3\n",
        "a.log.3": "life 0\nlife 1\n",
    }
    for _ in range(2):
        file.write(b"longer than ten\n")
        await file.flush(log)
    assert sorted(contents(tmp_path)) == ["a.log.1", "a.log.2", "a.log.3"]
    assert (tmp_path / "a.log.3").read_text() == "life 4\nlife 5\n"


@pytest.mark.anyio
async def test_what_cannot_be_set_aside_grows(tmp_path: Path) -> None:
    for number in (2, 3):
        (tmp_path / f"a.log.{number}" / "x").mkdir(parents=True)
    file, log = LogFile(tmp_path / "a.log", rotate=1), ChildLog()
    for _ in range(2):
        file.write(b"x\n")
        await file.flush(log)
    assert (tmp_path / "a.log").read_text() == "x\nx\n"
    assert log.tail(9) == []


@pytest.mark.anyio
async def test_without_a_size_files_grow(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log")
    for _ in range(3):
        file.write(b"x" * 1000)
        await file.flush(ChildLog())
    assert list(contents(tmp_path)) == ["a.log"]
