"""Completion in shells, as far as Python does it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli import completion
from tests.unit.api_fakes import FakeSupervisor, make_snapshot, model_view
from tests.unit.cli_fakes import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(short_dir: Path) -> Iterator[str]:
    models = [model_view("alpha", aliases=("first",)), model_view("also"), model_view("beta")]
    with serving(FakeSupervisor(picture=make_snapshot(models)), short_dir / "l.sock") as url:
        yield url


def complete(*words: str, url: str = "http://127.0.0.1:1") -> list[str]:
    """Ask as bash does: the words so far, the last of them unfinished."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'lswap'\nfrom llamaswap_py.cli.app import main; main()",
        ],
        env={
            **os.environ,
            "LSWAP_URL": url,
            "_LSWAP_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["lswap", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_and_models(url: str) -> None:
    assert complete("unp") == ["unpin"]
    assert complete("load", "al", url=url) == ["alpha", "also"]
    assert complete("logs", "", url=url) == ["alpha", "first", "also", "beta"]
    assert complete("rm", "be", url=url) == ["beta"]
    assert complete("load", "--url", url, "fi") == ["first"]


def test_commands_of_groups() -> None:
    assert complete("service", "un") == ["uninstall"]
    assert complete("key", "") == ["new", "list", "revoke"]


def test_without_a_server_there_is_silence() -> None:
    assert complete("load", "") == []
    assert complete("load", "", url="nonsense://x y") == []


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        begun = time.monotonic()
        assert complete("load", "", url=f"http://127.0.0.1:{deaf.getsockname()[1]}") == []
        assert time.monotonic() - begun < 15  # other commands wait for 30 s


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(completion.app, [shell])
    assert result.exit_code == 0
    assert f"complete_{shell}" in result.output
    if shutil.which(shell) is None:
        return  # the text is typer's; what is ours is that it asks lswap
    script = tmp_path / "script"
    script.write_text(result.output)
    assert subprocess.run([shell, "-n", script], check=False).returncode == 0
