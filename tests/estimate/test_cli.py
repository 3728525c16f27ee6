"""`lswap estimate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.cli import check
from llamaswap_py.cli.estimate import run
from llamaswap_py.config.load import Origin
from llamaswap_py.errors import LswapError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyModel

CONFIG = """
memory: {{devices: {{host: 300MiB}}, margin: 20MiB, cache_ram: 0}}
engine: {engine}
models:
  alpha: {{model: {alpha}, args: {{ctx-size: 512, parallel: 1}}, aliases: [first]}}
  beta: {{model: {beta}, args: {{ctx-size: 512, parallel: 1}}}}
  big: {{model: {alpha}, memory: {{host: 270MiB}}}}
  broken: {{model: {broken}}}
"""


@pytest.fixture
def config(
    llama_server: str, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    path = tmp_path / "c.yaml"
    path.write_text(
        CONFIG.format(
            engine=llama_server,
            alpha=tiny_model("cli-alpha", "one", pad_bytes=40 << 20),
            beta=tiny_model("cli-beta", "two", pad_bytes=80 << 20),
            broken=tmp_path / "broken.gguf",
        )
    )
    return path


def test_the_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not run(Origin(config), None, fresh=False, as_json=False)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].split() == ["MODEL", "DEVICE", "MEMORY", "SOURCE", "MADE", "OF"]
    assert any(line.startswith("alpha") and "weights" in line for line in lines)
    assert any(line.startswith("big") and "declared" in line for line in lines)
    assert "RAM: 300 MiB (declared) – kept free 20 MiB, available 280 MiB" in lines
    assert "fit together: alpha, beta" in lines
    assert "to load big, alpha and beta would be unloaded first" in lines
    assert any(line.startswith("problem: broken:") for line in lines)


def test_json_of_one_model_by_its_alias(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Origin(config), "first", fresh=False, as_json=True)
    report = json.loads(capsys.readouterr().out)
    (line,) = report["models"]
    assert line["model"] == "alpha"
    assert line["source"] in ("dry-run", "analytic")
    assert 40 << 20 < line["memory"]["host"] < 70 << 20
    assert line["evicts"] == []


def test_fresh_leaves_aside_what_was_declared(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Origin(config), "big", fresh=True, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["models"][0]["source"] in ("dry-run", "analytic")


def test_an_unknown_model(config: Path) -> None:
    with pytest.raises(LswapError, match="has no model gamma"):
        run(Origin(config), "gamma", fresh=False, as_json=False)


def test_without_an_engine_it_says_so(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", str(tmp_path / "absent"))
    text = config.read_text()
    config.write_text("\n".join(line for line in text.splitlines() if "engine:" not in line))
    assert not run(Origin(config), "alpha", fresh=False, as_json=False)
    assert "problem: alpha:" in capsys.readouterr().out


def test_a_program_that_never_ran_is_no_problem(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows what it takes, and it is loaded all the same: check says so, too."""
    config.write_text('models: {tool: {cmd: [sh, "{port}"]}}')
    assert run(Origin(config), None, fresh=False, as_json=False)
    assert "note: tool: its memory is unknown" in capsys.readouterr().out
    report = check.check(Origin(config))
    assert report.ok
    assert report.models[0].memory_unknown


def test_check_does_not_wait_for_ever(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known in time is said, with the command that goes on, and is not a problem."""
    monkeypatch.setattr(check, "BOUND", 0.0)
    report = check.check(Origin(config))
    told = {model.id: model.memory_unknown for model in report.models}
    assert "`lswap estimate` goes on" in told["alpha"]
    assert told["big"] == ""  # declared
    found = {model.id for model in report.models if model.problems}
    assert found == {"broken"}, "its file is cut off, which needs no estimate"
