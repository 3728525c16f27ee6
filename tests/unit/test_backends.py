"""The table of backends, against what is written down a second time: a script, and a help text."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from llamaswap_py.cli import engine
from llamaswap_py.devices.placement import placement_env
from llamaswap_py.estimate.dry_run import as_does_not_run
from llamaswap_py.llamacpp.backends import BACKENDS, NAMES, SELECTABLE
from llamaswap_py.llamacpp.fit_params import Refusal

SCRIPT = (Path(__file__).resolve().parents[2] / "scripts" / "build_llama_cpp.sh").read_text()


def test_the_build_script_builds_every_backend() -> None:
    told = re.search(r"--backend NAME +(.+?) \(", SCRIPT)
    assert told is not None
    assert told[1].split(" | ") == [*NAMES, "auto"]
    for one in BACKENDS:
        assert re.search(rf"^ +{one.name}\)\s+flags\+=\(-D{one.flag}=ON", SCRIPT, re.MULTILINE)


def test_the_help_of_engine_build_names_every_backend() -> None:
    option = inspect.get_annotations(engine.build, eval_str=True)["backend"].__metadata__[0]
    assert option.help == f"{', '.join(NAMES)} or auto."


@pytest.mark.parametrize("name", SELECTABLE)
def test_a_child_on_the_host_sees_no_device_of_its_backend(name: str) -> None:
    kind = SELECTABLE[name]
    env = placement_env(["host"], name, {})
    assert env[kind.variable] == kind.hides_all
    one = placement_env([f"{kind.prefix}1"], name, {})
    assert one[kind.variable] == "1"
    # Without a list of the engine, the one device that the child sees is its first.
    seen = Refusal("cache_k_l0", f"{kind.prefix}0")
    assert as_does_not_run("why", seen, [f"{kind.prefix}1"]).device == f"{kind.prefix}1"
