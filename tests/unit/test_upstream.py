"""What `make compat` makes of llama-server's arguments and of two runs of the same tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaswap_py.config.parse import load_config
from llamaswap_py.errors import EngineError
from llamaswap_py.hub.cache import find_cached
from llamaswap_py.hub.refs import HubRef
from llamaswap_py.llamacpp.paths import EngineManifest, write_manifest
from tests.sources import source_of
from tests.upstream.__main__ import outcomes_of
from tests.upstream.models import FILES, write_cache
from tests.upstream.page import REASONS, Reason, only_plain, part_of, section, sorted_by_reason
from tests.upstream.served import config_of

PLAIN = {"unit/test_a.py::one": ("passed", ""), "unit/test_a.py::two": ("passed", "")}
THROUGH = {"unit/test_a.py::one": ("passed", ""), "unit/test_a.py::two": ("failed", "404 == 200")}


def _read(values: dict[str, Any]) -> Any:
    return load_config(yaml.safe_dump(values), path=None, base_dir="/", env={}, home="/")


def test_a_server_with_a_model_becomes_one_preset() -> None:
    words = (
        "--port 18000 --temp 0.8 --seed 42 --host 127.0.0.1,::1 --offline "
        "--hf-repo ggml-org/models --hf-file tinyllamas/stories260K.gguf --no-slots --alias a,b "
        "--ctx-size 512 --api-key secret --cors-origins http://one"
    )
    made = config_of(words.split(), more=("test",))
    config = _read(made)
    assert config.models["a"].hf == "ggml-org/models:tinyllamas/stories260K.gguf"
    assert config.models["a"].aliases == ("b", "test")
    assert config.models["a"].args["ctx-size"] == 512
    assert [str(one) for one in made["listen"]] == ["127.0.0.1:18000", "[::1]:18000"]
    assert config.default_model == "a"
    assert "secret" not in json.dumps(made)


def test_a_router_becomes_a_preset_for_each_model_of_the_cache() -> None:
    words = ["--port", "18000", "--models-max", "2", "--ctx-size", "64", "--no-models-autoload"]
    config = _read(config_of(words, "[mine]\nhf-repo = a/b\n"))
    assert {
        *("ggml-org/tinygemma3-GGUF:Q8_0", "ggml-org/test-model-stories260K:F32", "mine")
    } <= config.models.keys()
    assert config.policy.max_loaded == 2
    assert config.models["mine"].args["ctx-size"] == 64


def test_the_stand_ins_lie_where_a_reference_finds_them(tmp_path: Path) -> None:
    write_cache(tmp_path)
    write_cache(tmp_path)
    for repo, names in FILES.items():
        for name in names:
            assert find_cached(HubRef(repo, name), tmp_path) is not None, name


def test_a_step_that_fails_is_a_test_that_fails() -> None:
    lines = [
        {"test": "a", "outcome": "passed", "why": ""},
        {"test": "a", "outcome": "failed", "why": "at its end"},
        {"test": "b", "outcome": "passed", "why": ""},
    ]
    records = ["\n".join(map(json.dumps, lines[:2])), json.dumps(lines[2])]
    assert outcomes_of(records) == {"a": ("failed", "at its end"), "b": ("passed", "")}


def test_the_page_tells_what_passes_only_plain_and_what_nobody_has_looked_at() -> None:
    assert only_plain(PLAIN, THROUGH) == ["unit/test_a.py::two"]
    assert only_plain(PLAIN, {}) == list(PLAIN), "what did not run has not passed"
    known = Reason("names", "two", "a name that is not there is refused")
    assert sorted_by_reason(["x::two", "x::three"], [known]) == {
        known: ["x::two"],
        None: ["x::three"],
    }
    text = section(PLAIN, THROUGH, "b1-cpu")
    assert "2 tests run, 2 pass plain, 1 of these through lswap" in text
    assert "* `test_a: two`" in text
    assert "| not looked at yet | 1 |" in text
    assert part_of("b1-cpu") == "server tests b1"


def test_of_an_older_build_only_what_nobody_has_looked_at_is_listed() -> None:
    tools = {"unit/test_tools_builtin.py::a": ("passed", "")}
    long = section(PLAIN | tools, THROUGH, "b1-cpu")
    short = section(PLAIN | tools, THROUGH, "b1-cpu", listed=False)
    assert "* `test_tools_builtin: a`" in long
    assert "* `test_tools_builtin: a`" not in short
    assert "| tools and MCP servers | 1 |" in short
    assert "* `test_a: two`" in short


def test_no_reason_hides_another() -> None:
    assert len({one.kind for one in REASONS}) == len(REASONS)


def test_an_engine_without_its_source_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = tmp_path / "bin" / "llama-server"
    with pytest.raises(EngineError, match="was not built by lswap"):
        source_of(server)
    write_manifest(tmp_path, EngineManifest(source="pypi", ref="b1"))
    with pytest.raises(EngineError, match="--source"):
        source_of(server)
    source = tmp_path / "cache/lswap/build/src/pypi-b1"
    (source / "tools/server/tests").mkdir(parents=True)
    assert source_of(server) == source
