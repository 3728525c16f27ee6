"""llamacpp/ holds all that is known of llama.cpp: no other folder has its options and texts."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaswap_py.cli.app import app
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.options import LONG_NAMES, OWNED, plain_name
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS

ROOT = Path(__file__).resolve().parents[2] / "llamaswap_py"
ROOM = "llamacpp"
KNOWN = {*LONG_NAMES, *OWNED, *PATH_OPTIONS, *PATH_LISTS}

EXCEPTIONS: dict[str, set[str] | None] = {
    # Reads other programs' command lines: which key of the file an option becomes is its business.
    "importing": None,
    # Examples of `args` in the reference of the file's keys.
    "config/preset.py": {"ctx-size", "kv-unified", "n-cpu-moe", "top-k"},
    # What earlier releases of lswap passed: a fact of those releases.
    "config/compat.py": {"ubatch-size"},
    # Options that carry secrets, of whatever program; a leaf cannot import the folder.
    "redaction.py": {"api-key", "hf-token", "hft"},
    # People type what they know from llama-server: what lswap says instead.
    "cli/advice.py": {"api-key"},
    "cli/importing.py": {"models-preset"},
}
"""Files or folders that may name options, and which (None: all), each with the reason."""

TEXTS = (
    *("cmd_child_to_router", "cmd_router_to_child", "cleaning up before exit", "GGML_ASSERT"),
    *("error while handling argument", "failed to load model", "cudaMalloc failed"),
    *("unknown model architecture", "server is listening", "couldn't bind", "loading shared"),
    *("fit_memory_breakdown", "llamacpp:", "total_slots", "n_prompt_tokens", "is_processing"),
    *("prompt_tokens_total", "n_restored", "LLAMA_ARG_", "LLAMA_API_KEY", "LLAMA_SERVER_"),
    *("__PRESET_", "the argument has been removed", "GGML_VK_VISIBLE_DEVICES", "ggml_cuda_init"),
    *("tokens_predicted", "dspark-", "imatrix"),
)
"""What llama.cpp prints, answers or reads, as far as lswap acts on it."""
MAY_SAY = {("api/model_lists.py", "total_slots")}
"""lswap's own answer to GET /props, in the shape of llama.cpp's router."""


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts in the code of a file, with their lines, and no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in told:
            continue
        if isinstance(text := node.value, bytes):
            yield node.lineno, text.decode("latin-1")
        elif isinstance(text, str):
            yield node.lineno, text


def others() -> Iterator[tuple[str, Path]]:
    """Yield all files of the package outside of llamacpp/, by their paths in it."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(f"{ROOM}/"):
            yield place, path


def options_in(text: str, known: Collection[str]) -> set[str]:
    """Return the options that a text is, or that it names with their dashes."""
    found = {name for name in re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", text) if name in known}
    bare = text.lstrip("-")
    return found | ({bare} if bare in known and len(bare) > 1 and "-" in text else set())


def allowed(place: str, name: str) -> bool:
    return any(
        (place == at or place.startswith(f"{at}/")) and (names is None or name in names)
        for at, names in EXCEPTIONS.items()
    )


def own_options() -> set[str]:
    """Return the options of lswap's own commands: they may be called like llama-server's.

    Hidden ones are no names of lswap's: `lswap up` takes them from people who know llama-server.
    """
    import typer

    def names(command: Any) -> Iterator[str]:
        for one in (one for one in command.params if not getattr(one, "hidden", False)):
            yield from (plain_name(each) for each in (*one.opts, *one.secondary_opts))
        for inner in getattr(command, "commands", {}).values():
            yield from names(inner)

    of_build = {"ui", "rpc"}  # of `lswap engine build`
    return {*names(typer.main.get_command(app)), "help", *of_build}


def named(known: Collection[str]) -> list[str]:
    own = own_options()
    return [
        f"{place}:{line}: {name}"
        for place, path in others()
        for line, text in literals(path)
        for name in sorted(options_in(text, known) - own)
        if not allowed(place, name)
    ]


def test_no_other_folder_names_llama_servers_options() -> None:
    assert named(KNOWN) == []


def test_no_other_folder_names_an_option_of_the_engine_in_use(llama_server: str) -> None:
    done = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True)
    assert named({plain_name(name) for name in parse_options(done.stdout)}) == []


def test_no_other_folder_has_llama_cpps_texts() -> None:
    wrong = [
        f"{place}:{line}: {known}"
        for place, path in others()
        for line, text in literals(path)
        for known in TEXTS
        if known in text and (place, known) not in MAY_SAY
    ]
    assert not wrong


def test_the_texts_are_those_that_the_folder_knows() -> None:
    """A text that it no longer has needs no check."""
    code = "\n".join(path.read_text() for path in (ROOT / ROOM).glob("*.py"))
    assert [text for text in TEXTS if text not in code and text.split()[0] not in code] == []


def test_no_exception_is_left_over() -> None:
    excepted = {(at, name) for at, names in EXCEPTIONS.items() for name in names or ()}
    known = KNOWN | {name for _, name in excepted}
    used = {
        (place, name)
        for place, path in others()
        for _, text in literals(path)
        for name in options_in(text, known)
    }
    assert excepted <= used


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("--ctx-size", {"ctx-size"}),
        ("ctx-size", {"ctx-size"}),
        ("-ctk", {"ctk"}),
        ("write --ctx-size 8192", {"ctx-size"}),
        ("args set both ctx-size and n-gpu-layers", set()),
        ("model", set()),
    ],
)
def test_options_are_found(text: str, found: set[str]) -> None:
    """The tests above are worth as much as this."""
    assert options_in(text, KNOWN) == found
