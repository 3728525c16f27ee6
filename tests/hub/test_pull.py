"""`lswap pull`: what fits, what is fetched, and what becomes of the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaswap_py.config.load import read_config
from tests.fakes.fake_hub import FakeHub, serve_hub

REPO = "someone/Tiny-3B-GGUF"
FILES = {
    "tiny-Q8_0.gguf": b"GGUF" + b"8" * 9000,
    "tiny-Q4_K_M.gguf": b"GGUF" + b"4" * 5000,
    "tiny-BF16.gguf": b"GGUF" + b"b" * 16000,
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub(FakeHub({REPO: FILES, "some/empty": {"a.txt": b"x"}})) as served:
        yield served


def pull(hub: FakeHub, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "hub")}
    command = [sys.executable, "-m", "llamaswap_py", "pull", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=env, cwd=folder
    )


def test_the_largest_that_fits_is_fetched_and_added_to_the_file(
    hub: FakeHub, tmp_path: Path
) -> None:
    file = tmp_path / "lswap.yaml"
    file.write_text("# mine\nmodels:\n  a: {model: a.gguf}   # the first\n")
    done = pull(hub, tmp_path, REPO, "--config", str(file))
    assert done.returncode == 0, done.stderr
    assert "Q8_0" in done.stdout, "not BF16: nobody runs that who has the choice"
    text = file.read_text()
    assert text.startswith("# mine\nmodels:\n  a: {model: a.gguf}   # the first\n")
    config = read_config(file)
    assert config.models["tiny-3b"].hf == f"{REPO}:Q8_0"
    assert list((tmp_path / "hub").rglob("tiny-Q8_0.gguf"))
    asked = len(hub.ranges)
    again = pull(hub, tmp_path, REPO, "--config", str(file))
    assert again.returncode == 2
    assert len(hub.ranges) == asked, "a name that is taken is found before the download"
    assert "there is already a model 'tiny-3b'" in again.stderr


def test_what_there_is_is_listed_and_a_tag_is_obeyed(hub: FakeHub, tmp_path: Path) -> None:
    listed = pull(hub, tmp_path, REPO, "--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [
        *("Q4_K_M", "Q8_0", "BF16"),
    ]
    assert "host" in listed.stdout
    data = json.loads(pull(hub, tmp_path, REPO, "--list", "--json").stdout)
    assert [one["quantisation"] for one in data] == ["Q4_K_M", "Q8_0", "BF16"]
    assert data[0]["fits"][-1] == "host"
    done = pull(hub, tmp_path, f"{REPO}:q4_k_m")
    assert done.returncode == 0, done.stderr
    assert f"hf: {REPO}:q4_k_m" in done.stdout
    again = json.loads(pull(hub, tmp_path, f"{REPO}:q4_k_m", "--json").stdout)
    assert (again["model"], again["hf"]) == ("tiny-3b", f"{REPO}:q4_k_m")
    assert Path(again["file"]).name == "tiny-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("nobody", "is not a repository"),
        ("some/where", "no repository some/where"),
        ("some/empty", "has no GGUF model"),
        (f"{REPO}:Q2_K", "has no Q2_K - it has Q4_K_M, Q8_0, BF16"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    hub: FakeHub, tmp_path: Path, reference: str, says: str
) -> None:
    done = pull(hub, tmp_path, reference)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_devices_are_those_of_the_file(hub: FakeHub, tmp_path: Path) -> None:
    file = tmp_path / "lswap.yaml"
    file.write_text("memory: {devices: {host: 1KiB}, margin: 0}\nmodels: {a: {model: a.gguf}}\n")
    data = json.loads(pull(hub, tmp_path, REPO, "--list", "--json", "--config", str(file)).stdout)
    assert [one["fits"] for one in data] == [[], [], []]
    refused = pull(hub, tmp_path, REPO, "--config", str(file))
    assert refused.returncode == 1
    assert f"nothing of {REPO} fits here" in refused.stderr
    file.write_text("models:\n")  # nothing yet: this one will be its first
    done = pull(hub, tmp_path, REPO, "--config", str(file), "--name", "first")
    assert done.returncode == 0, done.stderr
    assert list(read_config(file).models) == ["first"]
    file.write_text("models: [\n")
    wrong = pull(hub, tmp_path, REPO, "--config", str(file))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "the file cannot be changed" in wrong.stderr


def test_a_draft_head_is_offered_and_never_fetched_as_the_model(tmp_path: Path) -> None:
    files = {**FILES, "MTP/mtp-tiny-Q8_0.gguf": b"GGUF" + b"m" * 90}
    with serve_hub(FakeHub({REPO: files})) as hub:
        listed = pull(hub, tmp_path, REPO, "--list")
        assert len(listed.stdout.splitlines()) == 4, listed.stdout
        done = pull(hub, tmp_path, f"{REPO}:Q8_0")
        assert done.returncode == 0, done.stderr
        assert "`args: {spec-type: draft-mtp}`" in done.stdout
        assert not list((tmp_path / "hub").rglob("mtp-*"))
        data = json.loads(pull(hub, tmp_path, f"{REPO}:Q8_0", "--json").stdout)
        assert data["heads"] == ["draft-mtp"]


def test_what_is_pulled_is_what_the_file_names(tmp_path: Path) -> None:
    """Two models of one quantisation: the second one can only be named by its path."""
    file = tmp_path / "lswap.yaml"
    files = {"one/a-Q8_0.gguf": b"GGUF" + b"a" * 50, "two/b-Q8_0.gguf": b"GGUF" + b"b" * 90}
    with serve_hub(FakeHub({REPO: files})) as hub:
        done = pull(hub, tmp_path, REPO, "--config", str(file))
        assert done.returncode == 0, done.stderr
        assert read_config(file).models["tiny-3b"].hf == f"{REPO}:two/b-Q8_0.gguf"
