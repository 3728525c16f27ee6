"""`lswap check` never says "fine" of what can never load: one row for each kind of it.

Each row is tried with an estimate of its memory and with declared memory, for which none is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.cli.check import check, run
from llamaswap_py.config.load import Origin
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.llamacpp.fit_params import refusal_in
from tests.estimate.gguf_bytes import header

if TYPE_CHECKING:
    from pathlib import Path

HEADERS: dict[str, dict[str, Any]] = {
    "eye": {"general.architecture": "clip"},
    "typed": {"general.type": "mmproj"},
    "lora": {"general.architecture": "llama", "general.type": "adapter"},
    "vector": {"general.architecture": "controlvector"},
    "nameless": {"general.name": "x"},
    "other": {"general.architecture": "none-such", "none-such.block_count": 2},
}
NEVER = [
    # what, keys of the entry, what the problem says
    ("file missing", "model: none.gguf", "there is no such file"),
    ("file a folder", "model: folder.gguf", "this is a folder"),
    ("file empty", "model: empty.gguf", "not a GGUF file"),
    ("file of another format", "model: text.gguf", "not a GGUF file"),
    ("weights cut", "model: cut.gguf", "the weights are cut off"),
    ("header cut", "model: head.gguf", "cut off at byte 150"),
    ("shard missing", "model: s-00001-of-00002.gguf", "s-00002-of-00002.gguf: there is no such"),
    ("projector as the model", "model: eye.gguf", "is a projector, and a model is needed"),
    ("the same by its type", "model: typed.gguf", "is a projector, and a model is needed"),
    ("adapter as the model", "model: lora.gguf", "is a LoRA adapter, and a model is needed"),
    ("vector as the model", "model: vector.gguf", "is a control vector, and a model is needed"),
    ("no architecture", "model: nameless.gguf", "names no architecture"),
    ("projector missing", "model: good.gguf, args: {mmproj: none.gguf}", "there is no such file"),
    ("projector cut", "model: good.gguf, args: {mmproj: head.gguf}", "cut off at byte 150"),
    ("model as projector", "model: good.gguf, args: {mmproj: good.gguf}", "is a model, and a proj"),
    ("draft of a wrong kind", "model: good.gguf, args: {model-draft: eye.gguf}", "is a projector"),
    ("model as adapter", "model: good.gguf, args: {lora: good.gguf}", "is a model, and a LoRA"),
    ("adapter in a list", "model: good.gguf, args: {lora: 'lora.gguf,cut.gguf'}", "are cut off"),
    ("option unknown", "model: good.gguf, args: {ctx-sise: 3}", "did you mean ctx-size?"),
    ("option's value", "model: good.gguf, args: {ctx-size: many}", "is not a whole number"),
    ("option's choice", "model: good.gguf, args: {cache-type-k: q3}", "is none of"),
    ("too many slots", "model: good.gguf, args: {parallel: 300}", "at most 256 slots, not 300"),
    ("engine missing", "model: good.gguf, engine: /none/llama-server", "No such file"),
    ("engine no program", "model: good.gguf, engine: ./text.gguf", "is not executable"),
    ("engine another program", "model: good.gguf, engine: /bin/true", "/bin/true"),
    ("device missing", "model: good.gguf, device: CUDA7", "no device CUDA7"),
    ("device of the memory", "model: good.gguf, memory: {CUDA7: 1MiB}", "no device CUDA7"),
    ("RPC server gone", "model: good.gguf, args: {rpc: '127.0.0.1:1'}", "127.0.0.1:1"),
    ("program missing", "cmd: [none-such, '{port}']", "no program none-such"),
    ("program not executable", "cmd: [./text.gguf, '{port}']", "cannot be executed"),
    ("container", "cmd: [podmann, run, '{port}'], served_by: container", "no program podmann"),
    ("memory declared too large", "model: good.gguf, memory: {host: 90GiB}", "can never fit"),
]
ESTIMATED = [
    ("too large", "args: {ctx-size: 99999999}", "it can never fit"),
    (
        "options that exclude each other",
        "args: {flash-attn: off, cache-type-v: q8_0}",
        "refuses to start",
    ),
    ("architecture unknown", "engine: auto", "refuses to start"),
]


@pytest.fixture
def files(tmp_path: Path, llama_server: str) -> Path:
    """Write good and bad files, and the beginning of a configuration: c.yaml."""
    write_tiny_model(tmp_path / "good.gguf", "Hello.")
    good = (tmp_path / "good.gguf").read_bytes()
    made = {
        "empty": b"",
        "text": b"no model",
        "cut": good[: len(good) * 3 // 4],
        "head": good[:150],
        "s-00001-of-00002": good,
        **{name: header(pairs) for name, pairs in HEADERS.items()},
    }
    for name, data in made.items():
        (tmp_path / f"{name}.gguf").write_bytes(data)
    (tmp_path / "folder.gguf").mkdir()
    head = f"engine: {llama_server}\nmemory: {{devices: {{host: 8GiB}}}}\nmodels:\n"
    (tmp_path / "c.yaml").write_text(head)
    return tmp_path


def entry(files: Path, keys: str) -> Path:
    path = files / "c.yaml"
    path.write_text(f"{path.read_text()}  x: {{{keys}}}\n")
    return path


@pytest.mark.parametrize("declared", ["", ", memory: {host: 1MiB}"], ids=["", "declared"])
@pytest.mark.parametrize(("what", "keys", "said"), NEVER, ids=[one[0] for one in NEVER])
def test_what_can_never_load_is_never_fine(
    what: str,
    keys: str,
    said: str,
    declared: str,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert what
    path = entry(files, keys + ("" if "memory:" in keys else declared))
    assert not run(Origin(path), as_json=False), "the exit status is 1"
    printed = capsys.readouterr().out
    assert "fine" not in printed
    assert any(line.startswith("problem: ") and said in line for line in printed.splitlines())


@pytest.mark.parametrize(("what", "keys", "said"), ESTIMATED, ids=[one[0] for one in ESTIMATED])
def test_what_an_estimate_shows_is_never_fine(
    what: str, keys: str, said: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "other.gguf" if what == "architecture unknown" else "good.gguf"
    keys = keys if keys != "engine: auto" else "args: {ctx-size: 512}"
    path = entry(files, f"model: {model}, {keys}")
    assert not run(Origin(path), as_json=False), "the exit status is 1"
    printed = capsys.readouterr().out
    assert "fine" not in printed.replace("it needs 152.8 MiB and fits", "")
    assert said in printed


@pytest.mark.parametrize(
    "keys",
    [
        "model: good.gguf",
        "model: good.gguf, memory: {host: 1MiB}",
        "model: good.gguf, args: {lora: lora.gguf, mmproj: eye.gguf}, memory: {host: 1MiB}",
        "model: good.gguf, args: {ctx-size: 64, parallel: 128}",  # it gives each slot 256 tokens
        "cmd: [sleep, '{port}']",
    ],
)
def test_what_loads_is_fine(keys: str, files: Path) -> None:
    report = check(Origin(entry(files, keys)))
    assert (report.ok, report.models[0].problems) == (True, [])


LOADED = '{"type":"log","time":4,"level":"error","msg":"f: %s\\n"} / what():  failed to load model'


@pytest.mark.parametrize(
    ("said", "reason", "on_host"),
    [
        (LOADED % "key not found", "key not found", False),
        (LOADED % "cannot allocate the buffer", "", True),
        (LOADED % "out of memory", "", True),
        ("llama-fit-params did not end within 60 s", "", True),
        ('"level":"error","msg":"f: no"', "", True),
        ("what():  failed to load model", "failed to load model", True),
        ("what():  failed to load model", "", False),
    ],
)
def test_a_refusal_is_told_from_a_lack_of_memory(said: str, reason: str, on_host: bool) -> None:
    assert refusal_in(said, on_host=on_host) == reason
