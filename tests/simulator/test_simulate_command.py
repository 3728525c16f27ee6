"""`lswap simulate` on a real configuration file and a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaswap_py.cli.simulate import read_case, run, run_either
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
    assert run(read_case(*files))
    printed = capsys.readouterr().out
    for name in ("lswap", "fifo", "router", "collate", "keep-alive"):
        assert f"\n{name} " in printed
    assert "3 requests:" in printed


def test_it_prints_json(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(read_case(*files), policies=("lswap", "router"), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(one["policy"], one["answered"]) for one in found] == [("lswap", 3), ("router", 3)]


@pytest.mark.parametrize(("rate", "words"), [("7", "--read-rate"), ("0", "must be more than 0")])
def test_a_wrong_rate_is_told(files: tuple[Path, Path], rate: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_case(*files, rate)


def test_an_unknown_policy_is_told(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="known: lswap, fifo"):
        run(read_case(*files), policies=("best",))


MODELS = "{devices: {G: 8GiB}, models: {alpha: {memory: 6GiB, load: 2s}}}"
ASK = '{"client": "x", "model": "alpha", "at": 0, "service": 1, "priority": 5}'


def test_models_by_their_sizes_stand_for_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, trace = tmp_path / "m.yaml", tmp_path / "t.jsonl"
    models.write_text(MODELS)
    trace.write_text(ASK)
    assert run_either(None, models, trace, (), "2GiB", None, (1, None), as_json=False)
    assert "2.00" in capsys.readouterr().out, "the load"


@pytest.mark.parametrize(
    ("config", "models", "trace"), [(True, True, True), (False, False, True), (True, False, False)]
)
def test_the_models_come_from_one_file(
    config: bool, models: bool, trace: bool, tmp_path: Path
) -> None:
    first, second, third = (tmp_path if one else None for one in (config, models, trace))
    with pytest.raises(ConfigError) as raised:
        run_either(first, second, third, (), "2GiB", None, (1, None), as_json=False)
    assert "--models" in str(raised.value)


def test_a_missing_trace_is_told(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_case(files[0], files[1].with_name("none.jsonl"))
