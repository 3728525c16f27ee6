"""`lswap import …` as a command: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TinyModel
from tests.estimate.gguf_bytes import header

INPUTS = Path(__file__).parents[1] / "imports"


def lswap(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamaswap_py", "import", *words]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90, env=env)


def test_a_file_is_written_once_and_never_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "lswap.yaml"
    first = lswap("llama-swap", str(INPUTS / "swap_simple.yaml"), "-o", str(out))
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""
    assert f"wrote {out}: 2 models" in first.stderr
    assert "qwen2.5-coder" in out.read_text()
    out.write_text("mine\n")
    second = lswap("llama-swap", str(INPUTS / "swap_simple.yaml"), "-o", str(out))
    assert second.returncode == 2
    assert "this file exists" in second.stderr
    assert out.read_text() == "mine\n"
    assert lswap("llama-cpp", str(INPUTS / "router.ini"), "-o", str(out), "--force").returncode == 0
    assert "qwen3-8b" in out.read_text()


def test_a_command_goes_to_standard_output_named_after_its_file() -> None:
    done = lswap("command", "llama-server -m /m/Qwen3-8B-00001-of-00002.gguf -a x --port 1")
    assert done.returncode == 0, done.stderr
    assert "  Qwen3-8B:" not in done.stdout
    assert "  x:\n    model: /m/Qwen3-8B-00001-of-00002.gguf" in done.stdout
    named = lswap("command", "llama-server -m /m/Qwen3-8B-00001-of-00002.gguf", "--name", "q")
    assert "  q:" in named.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["command", "python serve.py"], "runs 'python', not llama-server"),
        (["command", "docker run -v a:/m x -m /m/a"], "not llama-server - give the part after the"),
        (["command", "llama-server", "-m", "x.gguf"], "put the command in quotes: `lswap import"),
        (["command", "llama-server 'a"], "cannot be parsed"),
        (["llama-swap", "/nowhere.yaml"], "/nowhere.yaml: the file cannot be read"),
        (["ollama", "/nowhere"], "no folder `manifests`"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(words: list[str], says: str) -> None:
    done = lswap(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_ollama_s_folder_is_found_and_its_blobs_named(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "1b"
    manifest.parent.mkdir(parents=True)
    kind = "application/vnd.ollama.image."
    layers = [
        {"mediaType": kind + "model", "digest": "sha256:aa"},
        {"mediaType": kind + "params", "digest": "sha256:bb"},
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    (folder / "blobs").mkdir()
    (folder / "blobs" / "sha256-bb").write_text('{"num_ctx": 2048}')
    done = lswap("ollama", OLLAMA_MODELS=str(folder))
    assert done.returncode == 0, done.stderr
    assert f"model: {folder}/blobs/sha256-aa" in done.stdout
    assert "ctx-size: 2048" in done.stdout
    assert "  tiny:1b:" in done.stdout
    named = lswap("ollama", os.path.relpath(folder))
    assert f"model: {folder}/blobs/sha256-aa" in named.stdout, (
        "where the new file lies is no matter"
    )
    assert "relative" not in named.stderr


@pytest.mark.parametrize(
    ("pooling", "option"), [(1, "embeddings: true"), (4, "reranking: true"), (None, "")]
)
def test_a_model_of_ollama_does_what_its_file_is_for(
    tmp_path: Path, pooling: int | None, option: str
) -> None:
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "nomic" / "latest"
    manifest.parent.mkdir(parents=True)
    kind = "application/vnd.ollama.image.model"
    manifest.write_text(json.dumps({"layers": [{"mediaType": kind, "digest": "sha256:aa"}]}))
    pairs: dict[str, Any] = {"general.architecture": "bert", "bert.context_length": 2048}
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / "sha256-aa"
    blob.write_bytes(header(pairs | ({"bert.pooling_type": pooling} if pooling else {})))
    done = lswap("ollama", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (": true" in done.stdout) == bool(option)
    assert option in done.stdout


def test_an_empty_machine_says_where_it_looked(tmp_path: Path) -> None:
    done = lswap("ollama", HOME=str(tmp_path), OLLAMA_MODELS=str(tmp_path / "x"))
    assert done.returncode == 2
    assert str(tmp_path / "x") in done.stderr


def test_what_is_written_passes_check_and_a_hundred_models_give_a_page(
    tmp_path: Path, llama_server: str, tiny_model: TinyModel
) -> None:
    """Options of an earlier engine, and one that is nowhere; each kind is said once."""
    from llamaswap_py.cli.check import check
    from llamaswap_py.config.load import Origin

    model = tiny_model("imported", "hello")
    command = f"/opt/no/llama-server -m {model} -c 8k --no-mmap --frobnicate 3 -fitt 512 -ngl all"
    source, out = tmp_path / "swap.yaml", tmp_path / "lswap.yaml"
    models = {f"m{number}": {"cmd": f"{command} --port ${{PORT}}"} for number in range(100)}
    source.write_text(json.dumps({"models": models}))
    done = lswap("llama-swap", str(source), "-o", str(out))
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load(out.read_text())
    assert written["models"]["m7"] == {
        "model": str(model),
        "args": {"ctx-size": 8192, "n-gpu-layers": "all", "load-mode": "none"},
        "fit": {"margin": "512MiB"},
    }
    assert written["memory"] == {"margin": "512MiB"}
    assert len(done.stderr.splitlines()) < 10
    for words in ("/opt/no/llama-server", "written as 8192", "--frobnicate"):
        assert done.stderr.count(words) >= 1, words
    report = check(Origin(out))
    assert report.problems == []
    assert all(each.problems == [] for each in report.models)


def test_what_check_will_say_of_this_machine_is_said_once(
    tmp_path: Path, llama_server: str
) -> None:
    source = tmp_path / "models.ini"
    sections = [f"[m{number}]\nmodel = /nowhere/m{number}.gguf\n" for number in range(50)]
    source.write_text("[*]\nc = 512\n" + "".join(sections))
    done = lswap("llama-cpp", str(source), "-o", str(tmp_path / "lswap.yaml"))
    (line,) = [each for each in done.stderr.splitlines() if "lswap check` will report" in each]
    assert "these files are missing: /nowhere/m0.gguf" in line
    assert line.endswith("and 44 more")


def test_a_command_that_runs_the_router_becomes_folders_and_defaults(tmp_path: Path) -> None:
    done = lswap("command", f"llama-server --models-dir {tmp_path} -c 1024 --models-max 2")
    assert yaml.safe_load(done.stdout) == {
        "policy": {"max_loaded": 2},
        "defaults": {"args": {"ctx-size": 1024}},
        "model_dirs": [str(tmp_path)],
    }
