"""docs/operating.md, docs/troubleshooting.md and docs/quickstart.md say what the code says."""

from __future__ import annotations

import ast
import re
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli.app import app
from llamaswap_py.cli.check import check
from llamaswap_py.cli.init import choose_origin
from llamaswap_py.client import calls
from llamaswap_py.client.remote import Remote
from llamaswap_py.config.load import Origin
from llamaswap_py.config.sections import Config, Log, Policy
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import API_CODES, LswapError
from llamaswap_py.llamacpp import binaries
from llamaswap_py.proxy.sockets import bind
from llamaswap_py.supervisor.reload import _FIXED

ROOT = Path(__file__).resolve().parents[2]
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    " ".join(block.replace("\n>", "\n").split())
    for block in re.findall(r"^> (.*(?:\n>.*)*)", TROUBLE, re.MULTILINE)
]
FIRST_HOUR = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
TABLE = [
    said
    for cell in re.findall(r"^\| (`[^|]+`) \|", TROUBLE + FIRST_HOUR, re.MULTILINE)
    for said in re.findall(r"`([^`]+)`", cell)
    if " " in said
]


@cache
def texts() -> frozenset[str]:
    """Return every whole text of the code; `…` stands for what is filled in."""
    files = (ROOT / "llamaswap_py").rglob("*.py")
    return frozenset(text for file in files for text in _texts(file))


def _texts(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    no_messages = {id(part) for node in ast.walk(tree) for part in _parts(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in no_messages:
            yield re.sub(r"%(?:\.\d+)?[a-z]", "…", str(node.value))


def _parts(node: ast.AST) -> list[ast.AST]:
    """Return the parts of an f-string, or the docstring of what has one."""
    if isinstance(node, ast.JoinedStr):
        return list(node.values)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first = node.body[0] if node.body else None
        return [first.value] if isinstance(first, ast.Expr) else []
    return []


def pattern(quote: str) -> re.Pattern[str]:
    """Return what a quote stands for: a whole message, where `…` may be anything."""
    return re.compile(".*".join(map(re.escape, re.split("…+", quote))))


def is_said(quote: str) -> bool:
    """Return whether a quote is a whole text of the code, or one with its place before it."""
    forms = {quote, quote.removeprefix("…: ")}
    return any(pattern(form).fullmatch(text) for form in forms for text in texts())


def is_quoted(message: str) -> bool:
    """Return whether the pages quote what a person sees, but for the remedy behind ` - `."""
    said = message.partition(" - ")[0]
    return any(pattern(quote).fullmatch(said) for quote in (*QUOTED, *TABLE))


@pytest.mark.parametrize("message", [*QUOTED, *TABLE])
def test_every_quoted_message_is_one_of_the_code(message: str) -> None:
    assert is_said(message)


def test_messages_are_quoted() -> None:
    assert len(QUOTED) > 25
    assert len(TABLE) >= 10
    assert not is_said("cannot listen on …: the address is taken")
    assert not is_said("no lswap answers")  # a part of a message is none
    assert not is_said("Return every whole text of the code")


BAD = """
engine: {engine}
memory: {{devices: {{host: 2GiB}}, cache_ram: 0}}
models:
  option: {{model: good.gguf, args: {{ctx-sise: 1}}, memory: {{host: 1MiB}}}}
  device: {{model: good.gguf, memory: {{CUDA7: 1MiB}}}}
  page: {{model: page.gguf}}
  gone: {{model: gone.gguf}}
  large: {{model: good.gguf, memory: {{host: 9GiB}}}}
"""


def test_what_check_finds_is_quoted_as_it_is_printed(tmp_path: Path, llama_server: str) -> None:
    (tmp_path / "good.gguf").write_bytes(b"GGUF")
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    (tmp_path / "c.yaml").write_text(BAD.format(engine=llama_server))
    report = check(Origin(tmp_path / "c.yaml"))
    said = [problem for model in report.models for problem in model.problems]
    assert len(said) == 5
    (tmp_path / "typo.yaml").write_text("modls: {}")
    said += check(Origin(tmp_path / "typo.yaml")).problems
    (tmp_path / "open.yaml").write_text("listen: :8080\nmodels: {a: {model: good.gguf}}")
    said += check(Origin(tmp_path / "open.yaml")).problems
    assert [one for one in said if not is_quoted(one)] == []


def test_what_a_first_command_says_is_quoted_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LLAMA_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LSWAP_LLAMA_SERVER", raising=False)
    monkeypatch.setattr(binaries, "COMMON_PLACES", ())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        port_taken = Endpoint(host="127.0.0.1", port=port)
        raised = [
            _error(lambda: choose_origin(None, None, ())),
            _error(binaries.locate_engine),
            _error(lambda: bind(port_taken)),
            _error(lambda: Remote(f"http://127.0.0.1:{port}").ask(calls.state())),
        ]
    assert [one for one in raised if not is_quoted(one)] == []


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(LswapError) as caught:
        call()
    return str(caught.value)


def test_every_quoted_code_exists() -> None:
    quoted = re.findall(r"\b([45]\d\d) `(\w+)`", TROUBLE + OPERATING)
    assert len(quoted) > 15
    for status, code in quoted:
        assert API_CODES[code][0] == int(status), code


def test_every_code_that_people_meet_is_explained() -> None:
    # The others are about a client's own request, and say it all.
    plain = {"method_not_allowed", "model_not_loaded", "reservation_refused"}
    plain |= {"model_loading", "stopped", "unsupported_encoding"}
    missing = {code for code in API_CODES if f"`{code}`" not in TROUBLE}
    assert missing == plain


@pytest.mark.parametrize("text", [OPERATING, TROUBLE], ids=["operating", "troubleshooting"])
def test_commands_and_links_exist(text: str) -> None:
    for name in sorted(set(re.findall(r"(?:`|\$ (?:sudo )?)lswap ([a-z]+)", text))):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_keys_exist() -> None:
    for kind, name in ((Log, "log"), (Policy, "policy")):
        known = set(kind.__struct_fields__)
        for text in (OPERATING, TROUBLE):
            assert set(re.findall(rf"`{name}\.(\w+)", text)) <= known
    assert set(_FIXED) <= set(Config.__struct_fields__)
    told = OPERATING.partition("wait for a restart")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", told)) == set(_FIXED)
