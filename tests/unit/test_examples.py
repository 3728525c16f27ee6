"""What people copy and follow: the example configurations and the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli.app import app
from llamaswap_py.config.argv import check_args
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "configs").glob("*.yaml"))


def read(text: str, name: str) -> Config:
    folder = str(ROOT / "configs")
    return load_config(text, path=Path(name), base_dir=folder, env={}, home="/home/someone")


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {
        *("demo.yaml", "cpu.yaml", "one-gpu.yaml", "two-gpus.yaml", "agents.yaml", "docker.yaml")
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config = read(path.read_text(encoding="utf-8"), path.name)
    assert config.models
    for preset in config.models.values():
        assert not check_args(preset, config, None)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_declared_models_fit_alone_where_the_budget_is_declared(path: Path) -> None:
    config = read(path.read_text(encoding="utf-8"), path.name)
    for device, budget in (config.memory.devices or {}).items():
        needs = [(preset.memory or {}).get(device, 0) for preset in config.models.values()]
        assert max(needs) <= budget - config.memory.margin.of(device)


def test_the_demo_has_room_for_one_model_only() -> None:
    config = read((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"), "demo.yaml")
    assert config.memory.devices is not None
    needs = [(preset.memory or {})["host"] for preset in config.models.values()]
    assert len(needs) == 2
    assert sum(needs) > config.memory.devices["host"] - config.memory.margin.of("host")


def test_the_readmes_configuration_is_valid_and_short() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 10
    config = read(blocks[0], "models.yaml")
    assert config.find("gpt-4o-mini") is not None
    for preset in config.models.values():
        assert not check_args(preset, config, None)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_readmes_commands_exist() -> None:
    named = set(re.findall(r"`lswap ([a-z]+)", README))
    assert {"up", "check", "ps", "engine"} <= named
    for name in sorted(named):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name


def test_the_readmes_files_exist() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
