"""What an import writes of options that the engine in use does not have, or would misread."""

from __future__ import annotations

from typing import Any

import pytest

from llamaswap_py.importing.command import read_command, split_command, take_environment
from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.engine_options import fit_to_engines, settle_margin
from llamaswap_py.importing.llama_cpp import read_ini
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.options import Option, table_of

HELP = """\
-m,    --model FNAME                    model path to load
                                        (env: LLAMA_ARG_MODEL)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded)
                                        (env: LLAMA_ARG_CTX_SIZE)
-b,    --batch-size N                   logical maximum batch size (default: 2048)
                                        (env: LLAMA_ARG_BATCH)
-lm,   --load-mode MODE                 model loading mode (default: auto)
--temp, --temperature N                 temperature (default: 0.80)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use (default: 'auto')
--jinja, --no-jinja                     whether to use jinja (default: enabled)
                                        (env: LLAMA_ARG_JINJA)
--props                                 enable changing global properties (default: disabled)
--chat-template-kwargs STRING           sets additional params for the json template parser
"""
OPTIONS: dict[str, Option] = dict(parse_options(HELP))


def fitted(line: str) -> tuple[dict[str, Any], list[str]]:
    """Return the preset that a command becomes, and the notes."""
    env, words = take_environment(split_command(line))
    draft = Draft(table_for=lambda _: table_of(OPTIONS))
    draft.models["x"] = read_command(words, env, draft, "command")
    fit_to_engines(draft, lambda _: table_of(OPTIONS))
    return draft.models["x"], [str(note) for note in draft.notes]


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("--no-mmap", {"load-mode": "none"}),
        ("--mlock --no-mmap", {"load-mode": "mlock"}),
        ("--temp 0.7", {"temp": 0.7}),
        ("--temperature 0.7", {"temperature": 0.7}),
        ("--temp 0.7 --temperature 0.8", {"temperature": 0.8}),
        ("-c 4096", {"ctx-size": 4096}),
        ("-fa", {"flash-attn": True}),
        ("-fa on --jinja", {"flash-attn": "on", "jinja": True}),
        ("--no-jinja", {"no-jinja": True}),
        ("--chat-template-kwargs -x -c 512", {"chat-template-kwargs": "-x", "ctx-size": 512}),
    ],
)
def test_options_come_over_in_words_of_the_engine(words: str, args: dict[str, Any]) -> None:
    preset, notes = fitted(f"llama-server -m /x.gguf {words}")
    assert preset["args"] == args
    assert notes == []


@pytest.mark.parametrize(
    ("words", "args", "says"),
    [
        ("-c 8k", {"ctx-size": 8192}, "llama-server would read 8; written as 8192"),
        ("-c 16_384", {"ctx-size": 16384}, "written as 16384"),
        ("-c 16,384", {"ctx-size": 16384}, "written as 16384"),
        ("-c big", None, "models.x.--ctx-size (big): left out: 'big' is not a whole number"),
        (
            "--frobnicate 3",
            None,
            "--frobnicate (3): left out: this llama-server has no",
        ),
        ("--ctx-sise 3", None, "did you mean ctx-size?"),
        ("--jinja top", {"jinja": True}, "it takes no value"),
        ("-fa maybe", None, "'maybe' is none of on, off, auto"),
        ("--new 1 2", None, "--new (1 2): left out: this llama-server has no such option"),
    ],
)
def test_what_it_would_misread_or_lacks_is_named(
    words: str, args: dict[str, Any] | None, says: str
) -> None:
    preset, notes = fitted(f"llama-server -m /x.gguf {words}")
    assert preset.get("args") == args
    assert len(notes) == 1
    assert says in notes[0]
    assert "extra" not in preset


def test_words_that_an_option_does_not_take_are_named() -> None:
    preset, notes = fitted("llama-server -m /x.gguf --jinja on top")
    assert preset["extra"] == ["--jinja"]
    assert notes == ["models.x.--jinja (on top): left out: words that it does not take"]


def test_variables_are_options_that_the_command_overrules() -> None:
    line = (
        "LLAMA_ARG_MODEL=/y.gguf LLAMA_ARG_BATCH=512 LLAMA_ARG_CTX_SIZE=99 LLAMA_ARG_NO_JINJA=0"
        " llama-server -c 1024"
    )
    preset, notes = fitted(line)
    assert preset["model"] == "/y.gguf"
    assert preset["args"] == {"no-jinja": True, "batch-size": 512, "ctx-size": 1024}
    assert notes == []


@pytest.mark.parametrize(
    ("said", "margin", "notes"),
    [
        ({"a": "2048", "b": "2048"}, None, 0),
        ({"a": "512", "b": "512"}, "512MiB", 0),
        ({"a": "512", "b": "256"}, "512MiB", 1),
        ({"a": "2048"}, None, 0),
        ({"a": "512"}, None, 1),
        ({"a": "1024", "b": "1024"}, None, 0),
        ({"a": "512,2048", "b": "512"}, None, 2),
        ({"*": "2048"}, None, 0),
        ({"*": "512"}, "512MiB", 0),
        ({"*": "2048", "a": "512"}, None, 1),
    ],
)
def test_each_preset_has_its_margin_and_all_of_them_the_least(
    said: dict[str, str], margin: str | None, notes: int
) -> None:
    text = "".join(
        f"[{name}]\n" + ("" if name == "*" else f"m = /{name}.gguf\n") + f"fit-target = {mib}\n"
        for name, mib in said.items()
    )
    text += "".join(f"[{name}]\nm = /{name}.gguf\n" for name in "ab" if name not in said)
    draft = read_ini(text, "x.ini", OPTIONS)
    settle_margin(draft)
    assert draft.settings.get("memory", {}).get("margin") == margin
    assert len(draft.notes) == notes
    for name, mib in said.items():
        preset = draft.settings["defaults"] if name == "*" else draft.models[name]
        assert preset["fit"] == {"margin": f"{max(map(int, mib.split(',')))}MiB"}


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("[a]\nm = /a.gguf\n", None),
        ("[*]\nfit = off\n[a]\nm = /a.gguf\n", None),  # inherited from `defaults`
        ("[*]\nfit = off\n[a]\nm = /a.gguf\nfit = on\n", "auto"),
        ("[*]\nfit = off\n[a]\nm = /a.gguf\nfit-ctx = 4096\n", "exact"),
        (
            "[*]\nfitt = 2048\n[a]\nm = /a.gguf\nfit-ctx = 4096\n",
            {"context": {"least": 4096}, "margin": "2048MiB"},
        ),
        ("[*]\nfitt = 2048\n[a]\nm = /a.gguf\nfit = off\n", "exact"),
    ],
)
def test_what_a_section_says_of_the_fit_is_one_key(text: str, fit: object) -> None:
    assert read_ini(text, "x.ini", OPTIONS).models["a"].get("fit") == fit


def test_without_an_engine_everything_is_kept() -> None:
    draft = Draft(models={"x": {"model": "/x", "args": {"no-mmap": True, "ctx-size": "8k"}}})
    fit_to_engines(draft, lambda _: table_of(None))
    assert draft.models["x"]["args"] == {"no-mmap": True, "ctx-size": "8k"}


@pytest.mark.parametrize("options", [OPTIONS, None], ids=["engine", "none"])
def test_a_section_goes_on_where_the_one_for_all_began(options: dict[str, Option] | None) -> None:
    text = """
[*]
no-mmap = true
props = on
load-on-startup = on
[a]
model = /a.gguf
mlock = on
props = off
load-on-startup = off
jinja = disabled
[b]
model = /b.gguf
load-on-startup = on
"""
    draft = read_ini(text, "x.ini", options)
    fit_to_engines(draft, lambda _: table_of(options))
    args = draft.models["a"]["args"]
    assert args["props"] is False
    assert args["jinja"] is False
    assert draft.models["a"]["preload"] is False
    if options is not None:
        assert args["load-mode"] == "mlock", "no mmap, as for all, and locked"
        assert draft.settings["defaults"]["args"]["load-mode"] == "none"


def test_sections_without_a_file_are_settings_for_models_of_a_folder() -> None:
    text = "[*]\nc = 1024\n[GLM-4.5-Air]\ntemp = 0.6\n[u/r-GGUF:q4_k_m]\nc = 1\n"
    draft = read_ini(text, "x.ini", OPTIONS, model_dirs=["/m"])
    assert draft.settings["model_dirs"] == ["/m"]
    assert draft.models["GLM-4.5-Air"] == {"args": {"temp": 0.6}}
    assert draft.notes == []
    alone = read_ini(text, "x.ini", OPTIONS)
    assert [note.place for note in alone.notes] == ["model_dirs"]
    assert "--models-dir DIR" in alone.notes[0].text
    assert alone.models["u/r-GGUF:Q4_K_M"]["hf"] == "u/r-GGUF:Q4_K_M"


def test_of_sections_with_one_name_the_last_counts() -> None:
    draft = read_ini("[a]\nm = /a.gguf\nc = 1\n[a]\nm = /b.gguf\n", "x.ini", OPTIONS)
    assert draft.models == {"a": {"model": "/b.gguf"}}
    assert "the last one counts" in draft.notes[0].text
