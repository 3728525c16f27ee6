"""`lswap report`: each part by itself, with and without a running lswap, and nothing private."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py import __version__
from llamaswap_py.children.logs import ChildLog
from llamaswap_py.cli import report
from llamaswap_py.cli.app import main
from llamaswap_py.cli.report import report_text
from tests.unit.api_fakes import (
    FakeSupervisor,
    failure_view,
    instance_view,
    make_snapshot,
    model_view,
)
from tests.unit.cli_fakes import serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.snapshot import ModelView

PARTS = (
    *("Versions", "Machine", "Devices", "Configuration", "Mistakes in the configuration", "State"),
    *("Why models are loaded or not", "Decisions", "Events", "Log of lswap", "Logs of models"),
)


@pytest.fixture(autouse=True)
def nothing(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without models, a configuration, an engine or a running lswap."""
    for name in ("CONFIG_HOME", "CACHE_HOME", "STATE_HOME", "DATA_HOME", "RUNTIME_DIR"):
        folder = short_dir / name.lower()
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(folder))
    home = short_dir / "home" / "Sentinel"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", str(home / "llama-server"))
    for name in ("LSWAP_URL", "LSWAP_KEY", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(home)
    return home


def parts_of(text: str) -> dict[str, str]:
    """Return the parts of a report by their titles."""
    _, *found = text.split("\n## ")
    return {one.partition("\n")[0]: one.partition("\n\n")[2] for one in found}


def gathered(config: Path | None = None, url: str = "unix:/nowhere/l.sock") -> dict[str, str]:
    return parts_of(report_text(config, url, None))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lswap", "report", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


# --- what there is to say


def test_without_anything_each_part_says_why_it_is_empty(nothing: Path) -> None:
    found = gathered()
    assert tuple(found) == PARTS
    assert f"lswap {__version__}" in found["Versions"]
    assert (
        "llama-server: none (LSWAP_LLAMA_SERVER: ~/llama-server: No such file" in found["Versions"]
    )
    assert "msgspec " in found["Versions"]
    assert "RAM: " in found["Devices"]
    assert "!! llama-server: none works" in found["Machine"]
    assert "variables that are set: LSWAP_LLAMA_SERVER, XDG_CACHE_HOME" in found["Machine"]
    for title in ("Configuration", "Mistakes in the configuration"):
        assert "could not be gathered: there is no configuration and no model" in found[title]
    for title in PARTS[5:]:
        assert "could not be gathered: no lswap answers at unix:/nowhere/l.sock" in found[title]
    assert "Sentinel" not in "".join(found.values())


def test_the_head_says_what_is_in_it_and_what_is_not() -> None:
    head = report_text(None, "unix:/nowhere/l.sock", None).partition("\n## ")[0]
    assert head.startswith("# lswap report\n")
    for words in ("Read it before you send it", "In it:", "Left out:", "prompts or answers"):
        assert words in head


def test_the_file_is_not_overwritten_unless_told(
    nothing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--url", "unix:/nowhere/l.sock") == 0
    file = nothing / "lswap-report.md"
    assert "wrote lswap-report.md" in (said := capsys.readouterr().out)
    assert "read it before you send it" in said
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("mine")
    assert run(monkeypatch) == 2
    assert "lswap-report.md: this file exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert run(monkeypatch, "--force", "--url", "unix:/nowhere/l.sock") == 0
    assert file.read_text().startswith("# lswap report\n")
    capsys.readouterr()
    assert run(monkeypatch, "-", "--url", "unix:/nowhere/l.sock") == 0
    assert capsys.readouterr().out.startswith("# lswap report\n")
    assert run(monkeypatch, "absent/report.md") == 2
    assert "it cannot be written: No such file or directory" in capsys.readouterr().err


def test_a_configuration_that_cannot_be_read_is_shown_as_far_as_it_is(nothing: Path) -> None:
    path = nothing / "lswap.yaml"
    path.write_text("models: {a: {model: a.gguf, nonsense: Sentinel-1}}\nttl: Sentinel-2\n")
    found = gathered(path)
    assert "ttl: '[redacted]'" in found["Configuration"]
    assert "nonsense: '[redacted]'" in found["Configuration"]
    path.write_text("models: [\n")
    assert "could not be gathered: ~/lswap.yaml:" in gathered(path)["Configuration"]


def test_mistakes_are_those_that_check_prints(nothing: Path) -> None:
    (nothing / "lswap.yaml").write_text("models: {a: {model: a.gguf}}\n")
    found = gathered()
    assert "problem: lswap.yaml:1: models.a.model:" in found["Mistakes in the configuration"]
    assert "not usable: see the problems above" in found["Mistakes in the configuration"]


def test_a_part_that_fails_for_a_bug_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("of all things")

    monkeypatch.setattr(report, "examine", fail)
    found = gathered()
    assert "could not be gathered: RuntimeError: of all things" in found["Machine"]
    assert "RAM: " in found["Devices"]


# --- a running lswap


def test_a_running_lswap_tells_of_itself(short_dir: Path) -> None:
    log = ChildLog()
    log.extend(["srv  llama_server: listening on unix:///x.sock", "Sentinel-1", "Sentinel-2"])
    failure = failure_view(log=("Sentinel-3",), summary="there is no such file")
    models = [
        model_view("alpha", state="ready", loads=1, args=("--model", "a.gguf")),
        model_view("org/beta:8b", state="failed", failure=failure),
    ]
    supervisor = FakeSupervisor(
        picture=make_snapshot(models, [instance_view("alpha", leases=1)]), log=log
    )
    own = ChildLog()
    own.extend(["10:00:00 INFO    ready alpha#1", '{"time": 1.0, "level": "info", "message": "x"}'])
    with serving(supervisor, short_dir / "l.sock", own_log=own) as url:
        found = gathered(url=url)
    assert "lswap 0.2.0 serving since" in found["State"]
    assert re.search(r"alpha +ready", found["State"])
    whys = found["Why models are loaded or not"]
    assert whys.index("org/beta:8b is failed") < whys.index("alpha is ready"), (
        "what fails comes first"
    )
    assert "failure: there is no such file" in whys
    assert "args: --model a.gguf" in whys
    assert "10:00:00 INFO    ready alpha#1" in found["Log of lswap"]
    assert " info x\n" in found["Log of lswap"]
    assert "srv  llama_server: [27 characters left out]" in found["Logs of models"]
    assert "[2 lines left out]" in found["Logs of models"]
    assert "that lswap is on another machine - run `lswap report` there" in found["Configuration"]
    assert "Sentinel" not in "".join(found.values())


def many(count: int, make: Callable[[int], ModelView]) -> list[ModelView]:
    return [make(number) for number in range(count)]


def test_each_part_is_bounded(short_dir: Path, nothing: Path) -> None:
    path = nothing / "lswap.yaml"
    path.write_text(
        "models:\n" + "".join(f"  m{n}: {{model: /nowhere/{n}.gguf}}\n" for n in range(2000))
    )
    models = many(2000, lambda n: model_view(f"m{n}", state="ready", loads=1))
    log, own = ChildLog(), ChildLog()
    log.extend(["slot      release: id  1 | task 0 | stop processing: n_tokens = 5"] * 2000)
    own.extend([f"10:00:00 INFO    line {number}" for number in range(2000)])
    supervisor = FakeSupervisor(picture=make_snapshot(models), log=log)
    with serving(supervisor, short_dir / "l.sock", own_log=own) as url:
        text = report_text(path, url, None)
    assert len(text) < 300_000
    found = parts_of(text)
    assert "and 1,980 more models" in found["Why models are loaded or not"]
    assert "line 1999" in found["Log of lswap"]
    assert "[1750 earlier lines left out]" in found["Log of lswap"]
    assert "not checked, because there are 2,000 models" in found["Mistakes in the configuration"]
    assert "more lines left out]" in found["Configuration"]


# --- the last pass


def cleaned(line: str, *loaded: str, secrets: dict[str, str] | None = None) -> str:
    return report._Cleaner("a-key-of-mine", secrets or {}, loaded)(line)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("asked with a-key-of-mine", "asked with [redacted]"),
        ("http://me:pw@host/x", "http://[redacted]@host/x"),
        ("a value of ${env.X}: word-from-env", "a value of ${env.X}: ${env.X}"),
        ("/home/ann/models/a.gguf", "/home/[user]/models/a.gguf"),
        ("/Users/ann: no such file", "/Users/[user]: no such file"),
        ("192.168.1.20 POST /v1", "[address] POST /v1"),
        ("from 2001:db8::7, port 8", "from [address], port 8"),
        ("on http://127.0.0.1:8080 and [::1]:8080", "on http://127.0.0.1:8080 and [::1]:8080"),
        ("0.0.0.0:8080", "0.0.0.0:8080"),
        ("0.13.002.114 I std::bad_alloc 20:32:17", "0.13.002.114 I std::bad_alloc 20:32:17"),
        ("version 13.615.71.2", "version 13.615.71.2"),
        ("x\x1b[31my", "x\\x1b[31my"),
        ("y" * 600, "y" * 500 + " …"),
        ("KeyError: 'Sentinel'", "KeyError: [its text left out]"),
        (
            "  | msgspec.ValidationError: Sentinel",
            "  | msgspec.ValidationError: [its text left out]",
        ),
        ("AttributeError: 'A' has no b", "AttributeError: 'A' has no b"),
        (
            "failed: llama-server crashed with SIGABRT: got exception: Sentinel",
            "failed: llama-server crashed with SIGABRT: [left out]",
        ),
        (
            "llama-server ended with exit code 1: failed to load model '/a.gguf' - mend it",
            "llama-server ended with exit code 1: failed to load model '/a.gguf' - mend it",
        ),
        ("loading stalled; it last said: Sentinel", "loading stalled; it last said: [left out]"),
        (
            "llama-server crashed with SIGABRT: failed to allocate memory",
            "llama-server crashed with SIGABRT: failed to allocate memory",
        ),
    ],
)
def test_what_is_private_is_taken_out_of_a_line(line: str, shown: str) -> None:
    loaded = "srv    load_model: failed to load model '/a.gguf'"
    assert cleaned(line, loaded, secrets={"word-from-env": "${env.X}"}) == shown


def test_the_home_folder_is_a_tilde_however_it_is_reached(
    nothing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = nothing.parent / "link"
    link.symlink_to(nothing)
    monkeypatch.setenv("HOME", str(link))
    assert cleaned(f"{link}/a and {nothing}/b, {link}") == "~/a and ~/b, ~"
    assert cleaned(f"{link}-2/a") == f"{link.parent}/[user]/a", "a folder beside it"
    monkeypatch.setenv("HOME", "/")
    assert cleaned("/a") == "/a"
    assert os.path.expanduser("~") == "/"
