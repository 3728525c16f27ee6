"""`lswap simulate` on a real configuration file and a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaswap_py.cli.simulate import read_case, run
from llamaswap_py.errors import ConfigError

CONFIG = """
memory:
  devices: {host: 64GiB}
  margin: 1GiB
  cache_ram: 0
models:
  alpha: {model: a.gguf, memory: {host: 40GiB}, args: {parallel: 2}}
  beta: {model: b.gguf, memory: {host: 40GiB}}
  gamma: {model: c.gguf}
"""
TRACE = """
{"client": "x", "model": "alpha", "at": 0, "service": 1}
{"client": "y", "model": "beta", "at": 1, "service": 1}
{"client": "y", "model": "gamma", "think": 1, "service": 1}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    config, trace = tmp_path / "c.yaml", tmp_path / "t.jsonl"
    config.write_text(CONFIG)
    trace.write_text(TRACE)
    return config, trace


def test_loads_take_as_long_as_their_bytes(files: tuple[Path, Path]) -> None:
    alpha, beta, gamma = read_case(*files, read_rate="4GiB").models
    assert (alpha.load, alpha.slots) == (10.0, 2)
    assert (beta.load, beta.slots) == (10.0, 4)
    assert sum(gamma.footprint.values()) == 63 * 1024**3  # unknown: a peer fills the device


def test_it_prints_every_policy(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files)
    printed = capsys.readouterr().out
    for name in ("lswap", "fifo", "router", "collate", "keep-alive"):
        assert f"\n{name} " in printed
    assert "3 requests:" in printed


def test_it_prints_json(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*files, policies=("lswap", "router"), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(one["policy"], one["answered"]) for one in found] == [("lswap", 3), ("router", 3)]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"policies": ("best",)}, "known: lswap, fifo"),
        ({"read_rate": "7"}, "--read-rate"),
        ({"read_rate": "0"}, "must be more than 0"),
    ],
)
def test_wrong_usage_is_told(files: tuple[Path, Path], knobs: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(*files, **knobs)  # type: ignore[arg-type]


def test_a_missing_trace_is_told(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        run(files[0], files[1].with_name("none.jsonl"))
