"""README.md and docs/: what they name exists - pages, commands, options, keys."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from llamaswap_py.cli import engine, importing, key, service
from llamaswap_py.cli.app import app
from llamaswap_py.config.parse import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
ABOVE = [ROOT / name for name in ("CONTRIBUTING.md", "AGENTS.md", "SECURITY.md")]
PAGES = [ROOT / "README.md", *ABOVE, *DOCS]
INDEX = ROOT / "docs" / "README.md"
GROUPS = {"engine": engine.app, "import": importing.app, "key": key.app, "service": service.app}
YAML_PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "clients.md"]


def commands() -> Iterator[tuple[str, str]]:
    """Yield (page, command line) of every `lswap …` that is shown to be typed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"^(?:\$ |    )(?:sudo )?(lswap .*)$", text, re.MULTILINE):
            yield page.name, line
        for line in re.findall(r"`(lswap [^`]+)`", text):
            yield page.name, line


def options_of(words: list[str]) -> set[str]:
    """Return the options of the command that the words begin with; raises KeyError without one."""
    command: Any = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    group = GROUPS.get(words[0])
    if group is not None and words[1:] and re.fullmatch("[a-z-]+", words[1]):
        command = get_command(group).commands[words[1].rstrip(",")]  # type: ignore[attr-defined]
    elif words[0] == "rm":
        from llamaswap_py.cli.rm import app as rm

        command = get_command(rm)
    elif words[0] == "top":
        return {"--url", "--key", "--help"}
    return {word for each in command.params for word in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_heading_stands_twice_on_a_page(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#{1,3} .*$", text, re.MULTILINE)
    assert sorted(headings) == sorted(set(headings))


def test_what_was_not_tried_is_said_alike_everywhere() -> None:
    files = [*PAGES, *(ROOT / ".github" / "workflows").glob("*.yml")]
    for file in files:
        text = " ".join(file.read_text(encoding="utf-8").replace("\n#", "\n").split())
        if "macOS" in text and file.name != "release.yml":
            assert re.search(r"macOS\W.{0,60}\bnot tried\b|[Nn]ot tried\b.*\bmacOS", text), file
        assert "Linux only" not in text, file
        assert not re.search(r"macOS.{0,60}not support", text), file


def test_every_page_is_linked_from_the_index_and_that_from_the_readme() -> None:
    assert "](docs/README.md)" in PAGES[0].read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#]+)\)", INDEX.read_text(encoding="utf-8"))
    there = {(INDEX.parent / target).resolve() for target in linked}
    assert {page for page in PAGES if page not in there} == {INDEX, ROOT / "AGENTS.md"}
    assert len(linked) == len(set(linked))


@pytest.mark.parametrize("page", [*ABOVE, *DOCS], ids=lambda page: page.name)
def test_each_page_says_first_for_whom_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, _, rest = text.partition("\n\n")
    assert title.startswith("# ")
    assert page == INDEX or re.match("For (?:those|agents) ", rest), rest[:60]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("page", "line"), [*commands()])
def test_commands_and_their_options_exist(page: str, line: str) -> None:
    given = shlex.split(line.partition("  #")[0].partition(" >")[0].partition(" | ")[0])[1:]
    words = given[: given.index("--")] if "--" in given else given
    if not words or words[0] == "…" or words[0].startswith("-"):
        return
    known = options_of(words) | {"-h", "--help"}
    options = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    assert options <= known, f"{page}: {line}"


@pytest.mark.parametrize("page", YAML_PAGES, ids=lambda page: page.name)
def test_what_is_to_be_pasted_into_the_file_is_right(page: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ours = [block for block in blocks if re.match("models:\n  [a-z]|listen:|keys:", block)]
    assert ours
    for block in ours:
        said = yaml.safe_load(block)
        text = block if "models" in said else f"{block}models: {{a: {{model: a.gguf}}}}\n"
        load_config(text, path=None, base_dir="/", env={}, home="/home/me")


def test_decisions_are_numbered_and_say_what_was_considered() -> None:
    pages = sorted((ROOT / "docs" / "decisions").iterdir())
    numbers = [int(page.name.partition("-")[0]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    parts = ["Context", "Decision", "Consequences", "What was considered"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == parts, page.name
        assert len(text.splitlines()) <= 60, f"{page.name}: a decision is one page"
