"""`lswap pull` reads a header on the hub and judges by context, on devices that are made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaswap_py.hub.api import FIRST, MOST
from llamaswap_py.units import GIB, MIB
from tests.conftest import TinyModel
from tests.estimate.gguf_bytes import header, tensor
from tests.fakes.fake_hub import FakeHub, Sparse, serve_hub

REPO = "someone/Llama-8B-GGUF"
PULL = """\
import json, os
from llamaswap_py.cli import app, pull
from llamaswap_py.devices import Device
sizes = json.loads(os.environ["DEVICES"])
devices = tuple(Device(name, size, 0, "declared") for name, size in sizes.items())
pull._devices = lambda _: devices
app.main()
"""
"""The command, on other devices than this machine's."""
DEVICES = {"CUDA0": 8 * GIB, "host": 24 * GIB}


def llama(words: int = 1000, **more: Any) -> bytes:
    """Return the header of Llama 3.1 8B; a word of the vocabulary takes 20 bytes."""
    pairs = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "tokenizer.ggml.tokens": [f"word{at:08}" for at in range(words)],
    }
    return header(pairs | more, [tensor("token_embd.weight", (4096, 1000), 12, 0)])


def repo(head: bytes, **more: Sparse | bytes) -> dict[str, Sparse | bytes]:
    sizes = {"Q4_K_M": 4.6, "Q6_K": 6.2, "Q8_0": 8.0, "BF16": 15.0}
    files = {f"llama-{name}.gguf": Sparse(head, round(at * GIB)) for name, at in sizes.items()}
    return files | {name.replace("__", "."): data for name, data in more.items()}


@contextmanager
def hub_of(files: dict[str, Sparse | bytes], **how: Any) -> Iterator[FakeHub]:
    with serve_hub(FakeHub({REPO: files}, **how)) as hub:
        yield hub


def pull(
    hub: FakeHub, folder: Path, *words: str, devices: dict[str, int] = DEVICES, token: str = ""
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN": token,
        "DEVICES": json.dumps(devices),
    }
    command = [sys.executable, "-c", PULL, "pull", REPO, *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=env, cwd=folder
    )


def test_the_list_tells_the_context_on_each_device(tmp_path: Path) -> None:
    with hub_of(repo(llama())) as hub:
        done = pull(hub, tmp_path, "--list")
        assert done.stderr == ""
        assert [line.split(maxsplit=4)[::4] for line in done.stdout.splitlines()[1:]] == [
            ["Q4_K_M", "CUDA0 with 16k context, host with 128k"],
            ["Q6_K", "CUDA0 with 8k context, host with 128k"],
            ["Q8_0", "host with 64k context"],
            ["BF16", "host with 32k context"],
        ]
        assert len(hub.ranges) == 1, "one header serves all"
        none = pull(hub, tmp_path, "--list", devices={"host": 4 * GIB})
        assert [line.split()[-1] for line in none.stdout.splitlines()[1:]] == ["-"] * 4


def test_json_has_the_figures(tmp_path: Path) -> None:
    with hub_of(repo(llama())) as hub:
        done = pull(hub, tmp_path, "--list", "--json", "--ctx", "32768")
    four, six, *_ = json.loads(done.stdout)
    assert four["quantisation"] == "Q4_K_M"
    assert four["context"] == 32768
    assert four["contexts"] == {"CUDA0": 16384, "host": 131072}
    assert four["fits"] == ["host"], "with the context that was asked for"
    cache = 32768 * 32 * 2 * 8 * 128 * 2
    beside = four["needs"]["CUDA0"] - four["size"] - cache
    assert 450 * MIB < beside < 700 * MIB
    assert six["needs"]["host"] - four["needs"]["host"] == six["size"] - four["size"]


def test_a_projector_that_would_be_fetched_counts(tmp_path: Path) -> None:
    files = repo(llama(), **{"mmproj-F16__gguf": Sparse(b"GGUF", GIB)})
    with hub_of(files) as hub:
        done = pull(hub, tmp_path, "--list", "--json")
    with hub_of(repo(llama())) as hub:
        plain = pull(hub, tmp_path, "--list", "--json")
    more, less = json.loads(done.stdout)[0], json.loads(plain.stdout)[0]
    assert more["needs"]["CUDA0"] - less["needs"]["CUDA0"] == round(1.3 * GIB)
    assert more["contexts"] == {"CUDA0": 8192, "host": 131072}, "16k before"


def test_of_a_split_model_the_first_shard_is_read(tmp_path: Path) -> None:
    names = [f"llama-Q4_K_M-0000{at}-of-00002.gguf" for at in (1, 2)]
    files: dict[str, Sparse | bytes] = {
        names[1]: Sparse(b"GGUF", 2 * GIB),
        names[0]: Sparse(llama(), 3 * GIB),
    }
    with hub_of(files) as hub:
        done = pull(hub, tmp_path, "--list", "--json")
        assert [name for name, _ in hub.ranges] == [names[0]]
    (one,) = json.loads(done.stdout)
    assert (one["size"], one["files"]) == (5 * GIB, 2)
    assert one["contexts"]["CUDA0"] == 16384


def test_the_range_grows_until_the_header_is_there(tmp_path: Path) -> None:
    head = llama(words=450_000)
    assert 2 * FIRST < len(head) < 4 * FIRST
    with hub_of(repo(head)) as hub:
        done = pull(hub, tmp_path, "--list")
        bounds = [(0, FIRST), (FIRST, 2 * FIRST), (2 * FIRST, 4 * FIRST)]
        expected = [("llama-Q4_K_M.gguf", f"bytes={at}-{end - 1}") for at, end in bounds]
        assert hub.ranges == expected
    assert "CUDA0 with 16k context" in done.stdout
    assert done.stderr == ""


def test_the_token_is_not_shown_to_the_place_a_file_is_at(tmp_path: Path) -> None:
    with hub_of(repo(llama())) as store, hub_of(repo(llama()), token="secret") as hub:
        hub.store = store
        done = pull(hub, tmp_path, "--list", token="secret")
        assert "CUDA0 with 16k context" in done.stdout
        assert (hub.tokens, store.tokens) == ([], [""])
    with hub_of(repo(llama()), token="secret") as hub:
        done = pull(hub, tmp_path, "--list", token="secret")
        assert "CUDA0 with 16k context" in done.stdout
        assert hub.tokens == ["Bearer secret"]


NO_LAYERS = llama(**{"llama.block_count": 0}) + bytes(3 * MIB)


def broken(head: bytes, **how: Any) -> dict[str, Any]:
    return {"files": {"a-Q4_K_M.gguf": head, "a-Q8_0.gguf": head + bytes(MIB)}, "how": how}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (broken(llama(), serves_ranges=False), "does not serve ranges of a-Q4_K_M.gguf"),
        (broken(llama(), cut_after=1000), "the hub cannot be reached"),
        (broken(b"<html>" * 100), "a-Q4_K_M.gguf is not a GGUF file"),
        (
            broken(llama(**{"llama.block_count": 0}) + bytes(3 * MIB)),
            "without layers cannot be estimated",
        ),
    ],
    ids=["no ranges", "cut off", "no GGUF", "no layers"],
)
def test_without_a_header_the_size_decides(
    tmp_path: Path, case: dict[str, Any], reason: str
) -> None:
    with hub_of(case["files"], **case["how"]) as hub:
        done = pull(hub, tmp_path, "--list", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("judged by file sizes alone, without the context: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    for one in json.loads(done.stdout):
        assert one["fits"] == ["CUDA0", "host"]
        assert (one["context"], one["contexts"]) == (0, {})
        assert one["needs"]["host"] == round(one["size"] * 1.1)


@pytest.mark.parametrize(
    ("word", "words", "fetched"),
    [(MIB, 70, MOST), (100 * MIB, 0, FIRST)],
    ids=["many words", "a word that ends far away"],
)
def test_a_header_without_end_is_not_read_on(
    tmp_path: Path, word: int, words: int, fetched: int
) -> None:
    head = llama(words=1000)
    head = head[: head.index(b"word00000000") - 8]
    head += (word.to_bytes(8, "little") + bytes(min(word, MIB))) * words
    if not words:
        head += word.to_bytes(8, "little")
    with hub_of({"a-Q4_K_M.gguf": Sparse(head, GIB)}) as hub:
        done = pull(hub, tmp_path, "--list")
        assert hub.ranges[-1][1].endswith(f"-{fetched - 1}")
    assert f"is longer than {MOST >> 20} MiB" in done.stderr
    assert "CUDA0, host" in done.stdout


def test_the_largest_that_fits_with_the_context_is_fetched(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    """Real files: to the byte as much room as the smaller one needs with the context asked for."""
    small = tiny_model("pull-context-small", "one two three").read_bytes()
    files: dict[str, Sparse | bytes] = {
        "tiny-Q4_K_M.gguf": small,
        "tiny-Q8_0.gguf": small + bytes(4096),
    }
    with hub_of(files) as hub:
        words = ("--ctx", "1024")
        listed = json.loads(pull(hub, tmp_path, "--list", "--json", *words).stdout)
        assert listed[0]["context"] == 1024
        need = listed[0]["needs"]["CUDA0"]
        devices = {"CUDA0": need, "host": 1 << 20}
        none = pull(hub, tmp_path, *words, devices={"CUDA0": need - 1, "host": 1 << 20})
        assert none.returncode == 1
        assert "nothing of someone/Llama-8B-GGUF fits here: the smallest takes" in none.stderr
        assert "with 1k" in none.stderr
        assert "a smaller --ctx" in none.stderr
        done = pull(hub, tmp_path, *words, devices=devices)
        assert done.returncode == 0, done.stderr
        assert "fits CUDA0 with 1k context; Q8_0 does not fit with 1k" in done.stdout
        assert list(tmp_path.rglob("tiny-Q4_K_M.gguf"))
        named = pull(hub, tmp_path, *words, "--json", devices={"CUDA0": need + 4096})
        found = json.loads(named.stdout)
        assert found["hf"].endswith(":Q8_0")
        assert (found["context"], found["contexts"]) == (1024, {"CUDA0": 1024})
