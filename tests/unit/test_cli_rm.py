"""`lswap rm`: out of the file, and off the disk what nobody else uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli.rm import app
from llamaswap_py.errors import LswapError

if TYPE_CHECKING:
    from pathlib import Path

FILE = """\
# mine
models:
  # the first
  alpha:
    model: a.gguf   # by hand
  beta: {hf: "org/beta-GGUF:Q4_K_M", aliases: [second]}
  gamma: {hf: "org/gamma-GGUF:Q4_K_M"}  # kept
  delta: {hf: org/gamma-GGUF}
groups:
  all: {exclusive: [alpha, gamma]}
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("beta", "gamma"):
        repo = tmp_path / "hub" / f"models--org--{name}-GGUF"
        (repo / "blobs").mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("c0ffee")
        (repo / "snapshots" / "c0ffee").mkdir(parents=True)
        (repo / "blobs" / "b").write_bytes(b"x" * 2048)
        (repo / "snapshots" / "c0ffee" / f"{name}-Q4_K_M.gguf").symlink_to(repo / "blobs" / "b")
    file = tmp_path / "models.yaml"
    file.write_text(FILE)
    return file


def rm(path: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--config", str(path)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_only_its_lines_go(path: Path) -> None:
    out = rm(path, "second", "--yes")
    assert out == f"beta is removed from {path}\n"
    assert path.read_text() == "".join(
        line for line in FILE.splitlines(keepends=True) if "beta" not in line
    )
    assert (path.parent / "hub" / "models--org--beta-GGUF" / "blobs" / "b").exists()


def test_its_files_go_if_asked(path: Path) -> None:
    assert "2 KiB are free again" in rm(path, "beta", "--files", "--yes")
    assert not (path.parent / "hub" / "models--org--beta-GGUF" / "blobs" / "b").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("delta", "--files", "--yes"), "'gamma' uses the same files"),
        (("alpha", "--files", "--yes"), "its file .*a.gguf is yours"),
        (("alpha", "--yes"), "was not removed, because without it the file is wrong: .*alpha"),
        (("nobody", "--yes"), "there is no model 'nobody' in it - it has: alpha, beta"),
        (("beta",), "pass --yes"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    path: Path, args: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LswapError, match=message) as caught:
        rm(path, *args)
    assert "\n" not in str(caught.value)
    assert path.read_text() == FILE
    for name in ("beta", "gamma"):
        assert (path.parent / "hub" / f"models--org--{name}-GGUF" / "blobs" / "b").exists()


def test_without_a_file_the_running_one_is_asked(path: Path) -> None:
    result = CliRunner().invoke(app, ["beta", "--yes", "--url", "http://127.0.0.1:1"])
    assert "no lswap answers" in str(result.exception)
    assert path.read_text() == FILE
