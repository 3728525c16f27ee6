"""What `lswap import` makes of realistic files: a configuration that loads, and honest notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.config.argv import build_args
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.sections import Config
from llamaswap_py.errors import ConfigError
from llamaswap_py.importing.command import (
    is_llama_server,
    read_command,
    split_command,
    take_environment,
)
from llamaswap_py.importing.draft import Draft, render
from llamaswap_py.importing.llama_cpp import read_ini
from llamaswap_py.importing.llama_swap import (
    allowed_sets,
    exclusive_groups,
    loosened,
    read_llama_swap,
)
from llamaswap_py.importing.ollama import OllamaManifest, read_ollama

INPUTS = Path(__file__).parents[1] / "imports"


def swap_draft(name: str, **environment: str) -> Draft:
    text = (INPUTS / name).read_text(encoding="utf-8")
    return read_llama_swap(yaml.safe_load(text), environment)


def notes(draft: Draft) -> str:
    return "\n".join(map(str, draft.notes))


def loaded(draft: Draft) -> Config:
    """Return what our own reader makes of the file; it must accept all of it."""
    text = render(draft, "a test")
    return load_config(text, path=Path("new.yaml"), base_dir="/base", env={}, home="/home/u")


def words_of(config: Config, model: str) -> list[str]:
    """Return the command line that our child would get, without what lswap always passes."""
    return list(build_args(config.models[model], config, None))


def has(words: list[str], *pair: str) -> bool:
    return any(tuple(words[at : at + len(pair)]) == pair for at in range(len(words)))


def test_a_simple_llama_swap_file_comes_over_whole() -> None:
    draft = swap_draft("swap_simple.yaml")
    config = loaded(draft)
    coder = config.models["qwen2.5-coder"]
    assert coder.model == "/models/qwen2.5-coder-7b-q4_k_m.gguf"
    assert coder.aliases == ("coder", "gpt-4o-mini")
    assert coder.ttl == 300
    assert coder.engine == "/opt/llama.cpp/llama-server"
    words = words_of(config, "qwen2.5-coder")
    assert has(words, "--ctx-size", "16384")
    assert has(words, "--n-gpu-layers", "99")
    assert has(words, "--flash-attn", "on")
    assert "${PORT}" not in words
    embed = config.models["nomic-embed"]
    assert embed.device == ("CUDA1",)
    assert embed.env == {}
    assert has(words_of(config, "nomic-embed"), "--embeddings")
    assert config.log.level == "warning"
    assert "max_loaded: 1" in notes(draft)
    assert embed.unlisted
    assert config.list_aliases is False


def test_macros_groups_and_filters_of_a_homelab() -> None:
    draft = swap_draft("swap_homelab.yaml", MODELS="/srv")
    big = draft.models["gpt-oss-120b"]
    assert big["model"] == "/srv/gguf/gpt-oss-120b-00001-of-00003.gguf"
    assert big["args"] == {
        "ctx-size": 65536,
        "n-gpu-layers": 99,
        "jinja": True,
        "n-cpu-moe": 24,
        "temp": 0.7,
    }
    assert big["ttl"] == "never"
    assert big["concurrency"] == 4
    assert big["metadata"] == {
        "name": "gpt-oss 120B",
        "description": "for hard questions",
        "context": 65536,
    }
    assert big["request"] == {
        "set": {"top_k": 40, "chat_template_kwargs": {"reasoning_effort": "medium"}},
        "strip": ["temperature", "top_p"],
        "per_name": {
            "gpt-oss-120b:high": {"set": {"chat_template_kwargs": {"reasoning_effort": "high"}}},
            "gpt-oss-120b:low": {"set": {"chat_template_kwargs": {"reasoning_effort": "low"}}},
        },
    }
    assert draft.models["llama-70b"]["args"]["model-draft"] == "/srv/gguf/llama-3.2-1b.gguf"
    assert draft.models["rerank"]["pin"] is True
    assert draft.models["rerank"]["preload"] is True
    assert draft.settings["groups"] == {
        "big": {"exclusive": ["gpt-oss-120b", "llama-70b"]},
        "default": {"exclusive": ["vllm-coder", "whisper"]},
    }
    assert draft.settings["defaults"] == {"ttl": "600s", "stop_timeout": "20s"}
    vllm = draft.models["vllm-coder"]
    assert vllm["cmd"][:3] == ["docker", "run", "--init"]
    assert "{port}:8000" in vllm["cmd"]
    assert vllm["ready"] == {"http": "/v1/models"}
    assert vllm["stop_cmd"] == ["docker", "stop", "vllm"]
    whisper = draft.models["whisper"]
    assert whisper["cmd"][-2:] == ["--port", "{port}"], "the port that its proxy has"
    said = notes(draft)
    assert loaded(draft).models["rerank"].pin
    for place in (
        "apiKeys",
        "peers",
        "sendLoadingState",
        "models.whisper.checkEndpoint",
        "models.gpt-oss-120b.metadata: only",
        "there is no model 'gone'",
        "there is no model 'not there'",
        "${missing}",
        "--cache-ram",
        "useModelName",
    ):
        assert place in said
    assert "sk-secret" not in said + render(draft, "a test")


def test_a_program_with_a_name_of_its_own_for_the_model_makes_a_good_file() -> None:
    root = {
        "models": {
            "coder": {
                "cmd": "vllm serve Qwen/Qwen3-Coder --port ${PORT}",
                "checkEndpoint": "/v1/models",
                "useModelName": "Qwen/Qwen3-Coder",
            },
            "literal": {"cmd": "x --port ${PORT} --text '${not_ours}'"},
            "fixed": {
                "cmd": "tts --listen=127.0.0.1:8005 --rate 1",
                "proxy": "http://localhost:8005",
            },
        }
    }
    config = loaded(read_llama_swap(root, {}))
    coder = config.models["coder"]
    assert coder.cmd is not None
    assert coder.cmd.words == ("vllm", "serve", "Qwen/Qwen3-Coder", "--port", "{port}")
    assert coder.request.set == {"model": "Qwen/Qwen3-Coder"}
    assert coder.ready.http == "/v1/models"
    literal = config.models["literal"]
    assert literal.cmd is not None
    assert literal.cmd.words[-1] == "${not_ours}"
    fixed = config.models["fixed"]
    assert fixed.cmd is not None
    assert fixed.cmd.words == ("tts", "--listen=127.0.0.1:{port}", "--rate", "1")


def test_a_matrix_becomes_groups_that_keep_the_same_models_apart() -> None:
    draft = swap_draft("swap_matrix.yaml")
    groups = [set(one["exclusive"]) for one in draft.settings["groups"].values()]
    apart = {frozenset(("gemma", "qwen"))} | {
        frozenset((one, "llama-70B")) for one in ("gemma", "qwen", "voxtral", "reranker")
    }
    models = set(draft.models)
    kept = {
        frozenset((a, b))
        for a in models
        for b in models
        if a < b or b < a
        if {a, b} != {a}
        if any({a, b} <= group for group in groups)
    }
    assert kept == apart
    assert draft.models["gemma"]["priority"] == 10
    assert "priority" not in draft.models["qwen"]
    assert draft.settings["aliases"] == {
        "coding": {"first": ["qwen", "gemma"]},
        "plan": {"first": ["llama-70B"]},
        "many": {"first": ["gemma", "qwen"]},
    }
    assert "elsewhere" in notes(draft)
    assert "evict_costs" in notes(draft)


@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), max_size=6))
def test_groups_forbid_exactly_the_pairs_that_no_set_allows(allowed: list[frozenset[str]]) -> None:
    groups = exclusive_groups(list("abcdef"), allowed)
    for one in "abcdef":
        for other in "abcdef":
            if one < other:
                together = any({one, other} <= each for each in allowed)
                assert together != any({one, other} <= set(group) for group in groups)


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("a", [{"a"}]),
        ("a & b", [{"a", "b"}]),
        ("a | b", [{"a"}, {"b"}]),
        ("(a | b) & c", [{"a", "c"}, {"b", "c"}]),
        ("a | b & c", [{"a"}, {"b", "c"}]),
        ("(a | b) & (c | d)", [{"a", "c"}, {"a", "d"}, {"b", "c"}, {"b", "d"}]),
        ("+other & v", [{"x", "v"}, {"y", "v"}]),
        ("short & b", [{"long-name", "b"}]),
    ],
)
def test_expressions_of_a_matrix(expression: str, want: list[set[str]]) -> None:
    sets = {"this": expression, "other": "x | y"}
    found = allowed_sets({"this": sets["this"], "other": sets["other"]}, {"short": "long-name"})
    assert [one for one in found if one not in ({"x"}, {"y"})] == want


@pytest.mark.parametrize("bad", ["", "a &", "(a", "a b", "+gone", "+this", "& a", "a)"])
def test_a_broken_expression_is_noted_not_guessed(bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        allowed_sets({"this": bad}, {})
    draft = Draft(models={"a": {"model": "/a.gguf"}})
    root: dict[str, Any] = {
        "models": {"a": {"cmd": "llama-server -m /a.gguf"}},
        "matrix": {"sets": {"this": bad}},
    }
    draft = read_llama_swap(root, {})
    assert "matrix.sets: cannot be read" in notes(draft)


def test_triples_that_pairs_cannot_forbid_are_said() -> None:
    pairs = [frozenset("ab"), frozenset("bc"), frozenset("ac")]
    assert loosened(pairs, list("abc")) == [frozenset("abc")]
    assert loosened([frozenset("abc")], list("abc")) == []


def test_what_is_no_llama_swap_file_is_refused() -> None:
    wrong: list[Any] = [None, [], {"a": 1}, {"models": ["a"]}]
    for root in wrong:
        with pytest.raises(ConfigError, match="not a llama-swap configuration"):
            read_llama_swap(root, {})


def test_a_preset_file_of_llama_cpp() -> None:
    draft = read_ini((INPUTS / "router.ini").read_text(encoding="utf-8"), "router.ini")
    assert draft.settings["defaults"] == {
        "args": {"n-gpu-layers": 99, "ctx-size": 8192, "flash-attn": "on"}
    }
    gemma = draft.models["ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"]
    assert gemma == {
        "hf": "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M",
        "args": {"jinja": True},
        "preload": True,
    }
    qwen = draft.models["qwen3-8b"]
    assert qwen["model"] == "/models/Qwen3-8B-Q4_K_M.gguf"
    assert qwen["stop_timeout"] == "20s"
    assert qwen["args"] == {
        "mmproj": "./mmproj.gguf",
        "ctx-size": 32768,
        "mlock": False,
        "no-mmap": True,
        "temperature": 0.6,
        "chat-template-kwargs": '{"enable_thinking": false}',
    }
    embed = draft.models["embed"]
    assert embed == {"model": "/models/embed.gguf", "args": {"embeddings": True}}
    assert len(draft.models) == 3, "no model of what stands above the sections"
    assert not [note for note in draft.notes if "default" in note.place]


def test_options_above_the_sections_are_no_model_without_a_file() -> None:
    draft = read_ini("temp = 0.6\n[a]\nm = /a.gguf\n", "x.ini")
    assert list(draft.models) == ["a"]
    assert [note.text for note in draft.notes] == ["names no model file, and is left out: temp"]
    assert list(read_ini("m = /x.gguf\n", "x.ini").models) == ["default"]


@pytest.mark.parametrize("bad", ["[a]\nwhat is this\n", "= 3\n", "[a\nm = x\n"])
def test_a_broken_preset_file_names_the_line(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"bad\.ini:[12]"):
        read_ini(bad, "bad.ini")


def ollama_blobs() -> dict[str, str]:
    params = {"num_ctx": 8192, "temperature": 0.6, "stop": ["<|im_end|>"], "num_thread": 4}
    params |= {"use_mmap": False, "use_mlock": True, "num_gpu": -1, "mirostat_x": 1}
    return {
        "sha256:p": json.dumps(params),
        "sha256:s": "You are a pirate.",
        "sha256:bad": "{",
    }


def layer(kind: str, digest: str) -> dict[str, Any]:
    return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": 1}


def test_models_of_ollama_are_used_where_they_lie() -> None:
    host, library = "registry.ollama.ai", "library"
    manifests = [
        OllamaManifest(
            (host, library, "qwen3", "8b"),
            json.dumps(
                {
                    "layers": [
                        layer("model", "sha256:abc"),
                        layer("template", "sha256:t"),
                        layer("params", "sha256:p"),
                        layer("system", "sha256:s"),
                        layer("license", "sha256:l"),
                    ]
                }
            ),
        ),
        OllamaManifest(
            (host, library, "llava", "latest"),
            json.dumps({"layers": [layer("model", "sha256:d"), layer("projector", "sha256:e")]}),
        ),
        OllamaManifest(
            (host, "someone", "tuned", "v2"),
            json.dumps({"layers": [layer("model", "sha256:f"), layer("params", "sha256:bad")]}),
        ),
        OllamaManifest(("hf.co", "bartowski", "X-GGUF", "Q4_K_M"), json.dumps({"layers": []})),
        OllamaManifest((host, library, "broken", "latest"), "not json"),
    ]
    blobs = ollama_blobs()
    draft = read_ollama(manifests, lambda digest: "/o/blobs/" + digest.replace(":", "-"), blobs.get)
    assert draft.models["qwen3:8b"] == {
        "model": "/o/blobs/sha256-abc",
        "args": {
            "jinja": True,
            "ctx-size": 8192,
            "threads": 4,
            "no-mmap": True,
            "mlock": True,
        },
        "request": {"default": {"temperature": 0.6, "stop": ["<|im_end|>"]}},
    }
    assert draft.models["llava"] == {
        "model": "/o/blobs/sha256-d",
        "args": {"mmproj": "/o/blobs/sha256-e"},
    }
    assert set(draft.models) == {"qwen3:8b", "llava", "someone/tuned:v2"}
    said = notes(draft)
    for text in ("mirostat_x", "system prompt", "hf.co/bartowski/X-GGUF:Q4_K_M", "cannot be read"):
        assert text in said


@pytest.mark.parametrize(
    ("line", "want"),
    [
        (
            "llama-server -m a.gguf -c 4096",
            {"model": "a.gguf", "args": {"ctx-size": 4096}},
        ),
        (
            "GGML_X=1 env CUDA_VISIBLE_DEVICES=2 /opt/llama-server -m a.gguf --seed -1 --mlock",
            {
                "model": "a.gguf",
                "engine": "/opt/llama-server",
                "args": {"seed": -1, "mlock": True},
                "env": {"GGML_X": "1"},
                "device": "CUDA2",
            },
        ),
        (
            "llama-server -hf ggml-org/gemma-3-4b-it-GGUF -hff gemma.gguf -hft secret",
            {"hf": "ggml-org/gemma-3-4b-it-GGUF:gemma.gguf"},
        ),
        (
            "llama-server -m a.gguf --lora x.gguf --lora y.gguf --control-vector-layer-range 1 9",
            {
                "model": "a.gguf",
                "args": {"lora": ["x.gguf", "y.gguf"]},
                "extra": ["--control-vector-layer-range", "1", "9"],
            },
        ),
        (
            "llama-server -m a.gguf --fit on --sleep-idle-seconds 300 -np 2 -np 4",
            {"model": "a.gguf", "args": {"parallel": 4}, "sleep": "300s", "fit": "auto"},
        ),
        ("llama-server -m a.gguf", {"model": "a.gguf"}),
        ("llama-server -m a.gguf --fit off -fitt 9", {"model": "a.gguf", "fit": "exact"}),
        (
            "llama-server -m a.gguf -fitc 4096 -fitt 2048",
            {"model": "a.gguf", "fit": {"context": {"least": 4096}, "margin": "2048MiB"}},
        ),
        (
            "CUDA_VISIBLE_DEVICES=1,0 llama-server -m a.gguf -fitt 512,2048",
            {
                "model": "a.gguf",
                "device": ["CUDA1", "CUDA0"],
                "fit": {"margin": {"CUDA1": "512MiB", "CUDA0": "2048MiB"}},
            },
        ),
        (
            "llama-server -m a.gguf -dev Vulkan0 --fit-target 512",
            {
                "model": "a.gguf",
                "args": {"device": "Vulkan0"},
                "fit": {"margin": {"Vulkan0": "512MiB"}},
            },
        ),
        (
            "LLAMA_ARG_CTX_SIZE=512 llama-server -m a.gguf",
            {"model": "a.gguf", "args": {"ctx-size": 512}},
        ),
    ],
)
def test_a_command_line(line: str, want: dict[str, Any]) -> None:
    env, words = take_environment(split_command(line))
    assert is_llama_server(words)
    draft = Draft()
    assert read_command(words, env, draft, "command") == want
    assert "secret" not in notes(draft)


_NAMES = st.sampled_from(["ctx-size", "batch-size", "threads", "seed", "temperature", "jinja"])


@given(st.dictionaries(_NAMES, st.integers(-9999, 99999), min_size=1))
def test_a_command_survives_the_way_there_and_back(options: dict[str, int]) -> None:
    words = ["llama-server", "--model", "/a.gguf"]
    for name, value in options.items():
        words += [f"--{name}"] if name == "jinja" else [f"--{name}", str(value)]
    draft = Draft()
    draft.models["a"] = read_command(words, {}, draft, "command")
    config = loaded(draft)
    args = {name: True if name == "jinja" else value for name, value in options.items()}
    assert config.models["a"].args == args
    back = words_of(config, "a")
    for name, value in options.items():
        assert has(back, f"--{name}") if name == "jinja" else has(back, f"--{name}", str(value))
