"""`cmd` and `ready`: programs other than llama-server, and every way to write them wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaswap_py.children.listeners import can_tell
from llamaswap_py.cli.check import check, run
from llamaswap_py.config.forms import Command, ReadyCheck
from llamaswap_py.config.load import Origin
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Preset
from llamaswap_py.errors import ConfigError

NOT_SHOWN = "lswap does not check who holds its port: this system does not show it"


def one(text: str) -> Preset:
    text = (
        f"defaults: {{args: {{c: 9}}, extra: [x], sleep: 5m, ttl: 1h}}\nmodels: {{a: {{{text}}}}}"
    )
    return load_config(text, path=Path("c.yaml"), base_dir="/etc", env={}, home="/h").models["a"]


def test_a_program_has_its_words_and_none_of_llama_servers() -> None:
    preset = one("cmd: [whisper-server, --port, '{port}', -m, ~/m.bin, 3, true], aliases: [w]")
    words = ("whisper-server", "--port", "{port}", "-m", "/h/m.bin", "3", "true")
    assert preset.cmd == Command(words, "/etc")
    assert preset.ready == ReadyCheck(http="/health")
    assert (preset.model, preset.args, preset.extra, preset.sleep) == ("", {}, (), None)
    assert (preset.ttl, preset.aliases) == (3600, ("w",))


def test_where_a_program_lies_and_how_it_is_ready() -> None:
    preset = one("cmd: [bin/x, '--listen=unix:{socket}'], ready: {line: 'listening on'}")
    assert preset.cmd is not None
    assert preset.cmd.words[0] == "/etc/bin/x"
    assert preset.cmd.takes_socket
    assert preset.ready == ReadyCheck(line="listening on")
    assert one("cmd: [x, '{port}'], ready: {http: /v1/models}").ready == ReadyCheck(
        http="/v1/models"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cmd: [x, --port, 80]", "models.a.cmd: no word has {port} in it"),
        ("cmd: [x, '{port}', '{socket}']", "models.a.cmd: both {port} and {socket} are in it"),
        ("cmd: x --port 1", "models.a.cmd: 'x --port 1' is not a list of words - write a list"),
        ("cmd: []", "models.a.cmd: the list is empty"),
        ("cmd: [x, {port}]", "models.a.cmd: a mapping is not a word of a command line - quote it"),
        ("cmd: null", "models.a: it names no file and no program"),
        (
            "cmd: [x, '{port}'], model: y",
            "models.a.model: model is for llama-server, but the preset has cmd",
        ),
        (
            "cmd: [x, '{port}'], hf: u/r",
            "models.a.hf: hf is for llama-server, but the preset has cmd",
        ),
        ("cmd: [x, '{port}'], args: {c: 1}", "models.a.args: args is for llama-server"),
        ("cmd: [x, '{port}'], engine: auto", "models.a.engine: engine is for llama-server"),
        ("cmd: [x, '{port}'], variants: [{name: y}]", "models.a.variants: variants is for"),
        ("cmd: [x, '{port}'], ready: /health", "models.a.ready: '/health' is not {http: /health}"),
        ("cmd: [x, '{port}'], ready: {http: h}", "models.a.ready.http: 'h' is not a path"),
        ("cmd: [x, '{port}'], ready: {}", "models.a.ready: it needs either http or line"),
        ("cmd: [x, '{port}'], ready: {http: /, line: x}", "models.a.ready: it needs either http"),
        ("cmd: [x, '{port}'], ready: {port: 1}", "models.a.ready.port: unknown key"),
        ("model: x, ready: {http: /}", "models.a.ready: ready is for programs that cmd runs"),
        ("model: x, served_by: cmd", "models.a.served_by: served_by is for programs that cmd runs"),
        ("cmd: [x, '{port}'], served_by: me", "models.a.served_by: 'me' is not cmd, container"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(text)
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"c.yaml:2: {message}") for line in lines), lines


def test_check_looks_for_the_program_and_needs_no_llama_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", str(tmp_path / "absent"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "found").write_text("#!/bin/sh\n")
    (tmp_path / "found").chmod(0o755)
    (tmp_path / "plain").write_text("")
    path = tmp_path / "c.yaml"
    path.write_text(
        "models:\n"
        "  a: {cmd: [found, '{port}'], memory: {host: 1GiB}}\n"
        "  b: {cmd: [./found, '{port}']}\n"
        "  c: {cmd: [lost, '{port}']}\n"
        "  d: {cmd: [./plain, '{port}']}\n"
        "  e: {cmd: [./lost, '{port}']}\n"
    )
    report = check(Origin(path))
    assert not report.problems
    said = {
        model.id: [each.partition(": ")[2] for each in model.problems] for model in report.models
    }
    assert said == {
        "a": [],
        "b": [],
        "c": ["models.c.cmd: there is no program lost on the PATH - install it, or write its path"],
        "d": [f"models.d.cmd: {tmp_path}/plain cannot be executed - chmod +x {tmp_path}/plain"],
        "e": [f"models.e.cmd: {tmp_path}/lost: there is no such program - check the path"],
    }
    assert os.fspath(path) in report.models[2].problems[0]


def test_check_says_who_may_hold_a_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("docker", "found"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    path = tmp_path / "c.yaml"
    path.write_text(
        "models:\n"
        "  a: {cmd: [found, '{port}'], memory: {host: 1GiB}}\n"
        "  b: {cmd: [found, '{socket}'], memory: {host: 1GiB}}\n"
        "  c: {cmd: [docker, run, -p, '{port}:80', x], memory: {host: 1GiB}}\n"
        "  d: {cmd: [docker, run, '{port}'], served_by: container, memory: {host: 1GiB}}\n"
        "  e: {cmd: [found, '{port}'], served_by: anyone, memory: {host: 1GiB}}\n"
    )
    report = check(Origin(path))
    own = "its port has to be held by cmd or what it starts"
    can = can_tell()
    assert [model.port for model in report.models] == [
        f"{own} (served_by: cmd)" if can else NOT_SHOWN,
        "",
        f"{own} (served_by: cmd)" if can else NOT_SHOWN,
        f"{own}, root or the user of lswap (served_by: container)" if can else NOT_SHOWN,
        "lswap does not check who holds its port (served_by: anyone)" if can else NOT_SHOWN,
    ]
    (warning,) = [each for each in report.warnings if "served_by" in each]
    assert warning.endswith(
        "models.c.cmd: docker starts a container, which holds the port - add `served_by: container`"
    )
    run(Origin(path), as_json=False)
    assert f"note: a: {report.models[0].port}\n" in capsys.readouterr().out
