"""What a model takes: its projector says it before the load, its child after it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import pytest

from llamaswap_py.supervisor import model_facts
from llamaswap_py.supervisor.model_facts import MOST_HEADERS, ModelFactsCache
from tests.unit.api_fakes import (
    FakeSupervisor,
    ask,
    instance_view,
    make_config,
    make_snapshot,
    model_view,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
SEES, HEARS = "clip.has_vision_encoder", "clip.has_audio_encoder"


def write(path: Path, architecture: str, **metadata: bool | str) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in metadata.items():
        key = name.replace("__", ".")
        writer.add_bool(key, value) if isinstance(value, bool) else writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class Book(ModelFactsCache):
    """The facts of the presets of a file, as if each had its arguments made."""

    def __init__(self, folder: Path, args: dict[str, tuple[str, ...]], template: str = "") -> None:
        config = make_config(
            "ui: none\nmodels:\n"
            + "".join(f"  {name}: {{model: {folder}/{name}.gguf}}\n" for name in args)
        )
        prepared: dict[str, Any] = {}
        for name, words in args.items():
            if not (folder / f"{name}.gguf").exists():
                extra = {"tokenizer__chat_template": template} if template else {}
                write(folder / f"{name}.gguf", "llama", **extra)
            files = (f"{folder}/{name}.gguf", *(one for one in words if one.endswith(".gguf")))
            one = SimpleNamespace(preset=config.models[name], args=words, files=files)
            prepared[name] = one
        self.config = config
        super().__init__(prepared)


def _as_inputs(capabilities: list[str]) -> list[str]:
    words = {"vision": "image", "audio": "audio"}
    return ["text", *(words[one] for one in capabilities if one in words)]


async def said(book: Book, inputs: tuple[str, ...] | None = None) -> dict[str, list[Any]]:
    """Return what the lists and `show` say of each model; with `inputs`, while it runs."""
    running = (
        [] if inputs is None else [instance_view(n, inputs=inputs) for n in book.config.models]
    )
    picture = make_snapshot([model_view(name) for name in book.config.models], running)
    supervisor = FakeSupervisor(config=book.config, picture=picture, facts=book)
    found: dict[str, list[Any]] = {}
    for path in ("/v1/models", "/models"):
        for entry in (await ask("GET", path, supervisor=supervisor)).json["data"]:
            found.setdefault(entry["id"], []).append(entry["architecture"]["input_modalities"])
    for name in book.config.models:
        one = (await ask("GET", f"/v1/models/{name}", supervisor=supervisor)).json
        found[name].append(one["architecture"]["input_modalities"])
        shown = await ask("POST", "/api/show", b'{"model":"%b"}' % name.encode(), None, supervisor)
        found[name].append(_as_inputs(shown.json["capabilities"]))
    for entry in (await ask("GET", "/api/tags", supervisor=supervisor)).json["models"]:
        found[entry["name"]].append(_as_inputs(entry["capabilities"]))
    return found


async def test_before_the_load_the_projector_says_it(tmp_path: Path) -> None:
    sees = str(write(tmp_path / "sees-p.gguf", "clip", **{SEES: True}))
    hears = str(write(tmp_path / "hears-p.gguf", "clip", **{SEES: False, HEARS: True}))
    both = str(write(tmp_path / "both-p.gguf", "clip", **{SEES: True, HEARS: True}))
    (tmp_path / "broken-p.gguf").write_bytes(b"no GGUF")
    book = Book(
        tmp_path,
        {
            "plain": (),
            "sees": ("--mmproj", sees),
            "short": ("-mm", sees, "--no-mmproj-offload"),
            "hears": ("--mmproj", hears),
            "both": ("--mmproj", both),
            "off": ("--mmproj", both, "--no-mmproj"),
            "broken": ("--mmproj", str(tmp_path / "broken-p.gguf")),
        },
    )
    takes = {
        "plain": ["text"],
        "sees": ["text", "image"],
        "short": ["text", "image"],
        "hears": ["text", "audio"],
        "both": ["text", "image", "audio"],
        "off": ["text"],
        "broken": ["text"],
    }
    assert await said(book) == {name: [kinds] * 5 for name, kinds in takes.items()}


async def test_after_the_load_the_child_says_it(tmp_path: Path) -> None:
    sees = str(write(tmp_path / "sees-p.gguf", "clip", **{SEES: True}))
    book = Book(tmp_path, {"model": ("--mmproj", sees)})
    assert await said(book, ("text", "audio")) == {"model": [["text", "audio"]] * 5}
    assert await said(book, ("text",)) == {"model": [["text"]] * 5}
    # While it loads nobody has asked it yet.
    assert await said(book, ()) == {"model": [["text", "image"]] * 5}


async def test_the_order_of_capabilities_and_a_changed_projector(tmp_path: Path) -> None:
    path = write(tmp_path / "p.gguf", "clip", **{SEES: True})
    book = Book(tmp_path, {"model": ("--mmproj", str(path))}, template="tools <think>")
    facts = await book.of("model")
    assert facts.capable_of(()) == ["completion", "tools", "vision", "thinking"]
    path.unlink()
    write(path, "clip", **{SEES: True, HEARS: True})
    assert (await book.of("model")).inputs == ("text", "image", "audio")


async def test_decision_models_say_what_they_answer_with(tmp_path: Path) -> None:
    write(tmp_path / "decides.gguf", "llama", **{"llama.decision.type": "laya"})
    write(tmp_path / "strange.gguf", "llama", **{"llama.decision.type": "oracle"})
    book = Book(tmp_path, {"decides": (), "strange": ()})
    picture = make_snapshot([model_view("decides"), model_view("strange")])
    supervisor = FakeSupervisor(config=book.config, picture=picture, facts=book)
    data = (await ask("GET", "/v1/models", supervisor=supervisor)).json["data"]
    outputs = {one["id"]: one["architecture"]["output_modalities"] for one in data}
    assert outputs == {"decides": ["decisions"], "strange": ["text"]}


async def test_a_list_waits_for_few_headers_and_the_others_are_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{number}" for number in range(MOST_HEADERS + 20)]
    book = Book(tmp_path, dict.fromkeys(names, ()))
    begun, released = [], threading.Event()
    facts = model_facts._facts

    def slow(prepared: Any, *args: Any) -> model_facts.ModelFacts:
        begun.append(prepared.preset.id)
        if len(begun) > MOST_HEADERS:  # the list must not wait for it
            assert released.wait(60)
        return facts(prepared, *args)

    monkeypatch.setattr(model_facts, "_facts", slow)
    found = await book.of_each(names)
    assert [name for name in names if found[name].family == "llama"] == names[:MOST_HEADERS]
    assert all(found[name].size and found[name].digest for name in names)
    reading = book._reading
    assert reading is not None
    assert not reading.done()
    released.set()
    await asyncio.wrap_future(reading)
    assert begun == names
    again = await book.of_each(names)
    assert {one.family for one in again.values()} == {"llama"}
    assert {name: one.digest for name, one in again.items()} == {
        name: one.digest for name, one in found.items()
    }
    assert begun == names


async def test_a_header_that_cannot_be_read_does_not_keep_others_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{number}" for number in range(MOST_HEADERS + 3)]
    book = Book(tmp_path, dict.fromkeys(names, ()))
    facts = model_facts._facts

    def broken(prepared: Any, *args: Any) -> model_facts.ModelFacts:
        if prepared.preset.id == names[-2]:
            raise ZeroDivisionError
        return facts(prepared, *args)

    monkeypatch.setattr(model_facts, "_facts", broken)
    await book.of_each(names)
    assert book._reading is not None
    await asyncio.wrap_future(book._reading)
    assert (await book.of(names[-1])).family == "llama"
