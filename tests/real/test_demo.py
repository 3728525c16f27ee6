"""The demonstration as people run it: a process of its own, a real llama-server, a real client."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from llamaswap_py.config.load import read_config
from llamaswap_py.demo import run
from llamaswap_py.demo.served import DemoError
from llamaswap_py.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]
ALPHA = "I am alpha, and I was loaded because you asked for me."
BETA = "I am beta; alpha had to leave, because there is room for one of us only."


@pytest.fixture
def config(short_dir: Path, llama_server: str) -> Path:
    """The configuration of the checkout, in a folder of its own, on a port that is free now."""
    folder = short_dir / "configs"
    folder.mkdir()
    text = (ROOT / "configs" / "demo.yaml").read_text()
    assert "127.0.0.1:8080" in text
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = folder / "demo.yaml"
    path.write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
    return path


def run_demo(config: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llamaswap_py", "demo", "--build", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **changes},
    )


def test_both_models_answer_and_the_swap_is_shown(config: Path) -> None:
    done = run_demo(config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ALPHA in done.stdout
    assert BETA in done.stdout
    assert re.search(r"swap \d+ ms \(alpha out \d+, beta in \d+\)", done.stdout)
    assert re.search(r"alpha +stop +evicted: makes room for beta", done.stdout)
    assert "loads 2, evictions 1" in done.stdout
    assert "exit code 0, no llama-server left" in done.stdout
    assert "\x1b" not in done.stdout  # no colours where nobody sees them
    assert done.stderr == ""


def test_it_needs_nothing_that_lswap_does_not_need(config: Path, short_dir: Path) -> None:
    absent = short_dir / "absent"
    absent.mkdir()
    for name in ("gguf", "numpy", "openai"):
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
    done = run_demo(config, PYTHONPATH=f"{absent}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert BETA in done.stdout


def test_a_port_in_use_is_left_alone(config: Path) -> None:
    port = int(re.search(r"127\.0\.0\.1:(\d+)", config.read_text())[1])  # type: ignore[index]
    with socket.create_server(("127.0.0.1", port)):
        done = run_demo(config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"127.0.0.1:{port} is in use" in done.stdout
    assert BETA in done.stdout


def test_keep_serves_until_it_is_told_to_stop(config: Path) -> None:
    with kept_demo(config) as (demo, url):
        body = {"model": "alpha", "messages": [{"role": "user", "content": "again"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert answer.json()["choices"][0]["message"]["content"].strip() == ALPHA
        family = psutil.Process(demo.pid).children(recursive=True)
        assert any(one.name() == "llama-server" for one in family)
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=90)
        assert demo.returncode == 0, rest
        assert "no llama-server left" in rest
        assert not psutil.wait_procs(family, timeout=60)[1]


@contextmanager
def kept_demo(config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "llamaswap_py", "demo", "--keep", "--config", str(config)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            seen = ""
            for line in demo.stdout:
                seen += line
                if serving := re.search(r"serving +(http://\S+) until Ctrl-C", line):
                    yield demo, serving[1]
                    return
            pytest.fail(f"the demo ended early:\n{seen}")
        finally:
            demo.kill()


def test_a_server_that_does_not_start_is_explained_by_its_own_words(
    config: Path, short_dir: Path
) -> None:
    taken = short_dir / "run" / "lswap"
    taken.mkdir(parents=True)
    taken.chmod(0o777)
    done = run_demo(config, XDG_RUNTIME_DIR=str(taken.parent))
    assert done.returncode == 1
    assert "demo failed: lswap up did not start" in done.stderr
    assert f"others can write to {taken}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_model_that_is_not_tiny_is_not_overwritten(config: Path) -> None:
    model = config.parent.parent / "build" / "demo" / "alpha.gguf"
    model.parent.mkdir(parents=True)
    with model.open("wb") as file:
        file.truncate(1 << 30)
    done = run_demo(config)
    assert done.returncode == 1
    assert "would overwrite" in done.stderr
    assert model.stat().st_size == 1 << 30


def test_a_configuration_that_is_not_the_demos_is_refused(config: Path) -> None:
    config.write_text(config.read_text().replace("says:", "note:"))
    done = run_demo(config)
    assert done.returncode == 1
    assert "not the demo's configuration" in done.stderr
    assert not list(config.parent.parent.rglob("*.gguf"))


def test_an_engine_that_was_named_and_does_not_work_is_not_replaced_by_a_build(
    config: Path,
) -> None:
    done = run_demo(config, LSWAP_LLAMA_SERVER="/nowhere/llama-server")
    assert done.returncode == 1
    assert "demo failed: LSWAP_LLAMA_SERVER" in done.stderr
    assert "building" not in done.stdout


def test_without_an_engine_it_says_how_to_get_one(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_none(spec: str) -> None:
        raise EngineError("no llama-server found")

    monkeypatch.delenv("LSWAP_LLAMA_SERVER", raising=False)
    monkeypatch.setattr(run, "locate_engine", find_none)
    monkeypatch.setattr(run, "build_engine", None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # ours are pytest's here
    assert run.run(config) == 1
    said = capsys.readouterr().err
    assert said.startswith("\ndemo failed: no llama-server found\n  `lswap demo --build` downl")
    assert not list(config.parent.parent.rglob("*.gguf"))


def test_an_installation_has_its_file_and_models_in_the_cache(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = short_dir / "site-packages" / "llamaswap_py" / "demo"
    installed.mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "demo.yaml", installed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(short_dir / "cache"))
    assert run.demo_file() == ROOT / "configs" / "demo.yaml"
    monkeypatch.setattr(run, "__file__", str(installed / "run.py"))
    path = run.demo_file()
    assert path == short_dir / "cache" / "lswap" / "demo" / "demo.yaml"
    config = read_config(path)
    assert {Path(preset.model).parent for preset in config.models.values()} == {path.parent}
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(DemoError, match="set XDG_CACHE_HOME to a folder of yours"):
        run.demo_file()


def test_an_engine_that_cannot_be_built_ends_the_demo(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_none(spec: str) -> None:
        raise EngineError("no llama-server found")

    def fail_to_build(options: object) -> None:
        raise EngineError("the engine was not built (status 1)", remedy="see the messages above")

    monkeypatch.delenv("LSWAP_LLAMA_SERVER", raising=False)
    monkeypatch.setattr(run, "locate_engine", find_none)
    monkeypatch.setenv("LSWAP_RELEASES_URL", "https://releases.invalid/r")
    monkeypatch.setattr(run, "build_engine", fail_to_build)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # ours are pytest's here
    assert run.run(config, build=True) == 1
    said = capsys.readouterr()
    assert "releases.invalid cannot be reached" in said.out
    assert "building one" in said.out
    assert "demo failed: the engine was not built (status 1)\n  see the messages above" in said.err
