"""`lswap --version`: the version, the commit and the engine, in a checkout and in what is built."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llamaswap_py import __version__
from llamaswap_py.cli import version
from tests.unit.engine_fakes import write_server

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "llamaswap_py/commit.txt"


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    version.commit.cache_clear()


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def said(capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> str:
    version.print_version(as_json=as_json)
    return capsys.readouterr().out


def installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package which is neither in a checkout nor made from one."""
    package = path / "site-packages" / "llamaswap_py"
    package.mkdir(parents=True)
    monkeypatch.setattr(version, "_PACKAGE", package)
    return package


def test_a_checkout_asks_git(capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("missing: the history of the repository (a git clone)")
    head = git(ROOT, "rev-parse", "--short=7", "HEAD")
    assert f"lswap {__version__} (commit {head}, " in said(capsys)
    assert version.lswap_text() == f"lswap {__version__} (commit {head})"
    assert json.loads(said(capsys, as_json=True))["commit"] == head


def test_a_wheel_has_it_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed(tmp_path, monkeypatch) / "commit.txt").write_text("abc1234\n")
    assert f"lswap {__version__} (commit abc1234, " in said(capsys)


def test_without_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = installed(tmp_path, monkeypatch)
    git(tmp_path, "init", "-q")  # a repository around it is not its own
    assert f"lswap {__version__} (commit unknown, " in said(capsys)
    assert version.lswap_text() == f"lswap {__version__}"
    (package.parent / ".git").write_text("gitdir: nowhere")
    version.commit.cache_clear()
    assert json.loads(said(capsys, as_json=True))["commit"] is None
    monkeypatch.setenv("PATH", "/nowhere")
    version.commit.cache_clear()
    assert version.commit() is None


def test_the_engine_is_the_one_that_auto_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write_server(tmp_path / "llama-server", 9999)
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", str(engine))
    assert said(capsys).endswith(", llama-server b9999-cpu)\n")
    found = {"path": str(engine), "build": 9999, "backend": "cpu"}
    assert json.loads(said(capsys, as_json=True))["engine"] == found
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", str(tmp_path / "nothing"))
    assert said(capsys).endswith(", no llama-server)\n")
    assert json.loads(said(capsys, as_json=True))["engine"] is None


def built(source: Path, kind: str) -> list[str]:
    """Build the package; return the files of the archive."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (path,) = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    if kind == "wheel":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as tar:
        tar.extractall(source.parent, filter="data")
        return tar.getnames()


def test_what_is_built_from_a_checkout_knows_its_commit(tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    for name in ("llamaswap_py", "scripts", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.pyc"))
    assert COMMIT not in built(source, "wheel"), "there is no git"
    shutil.rmtree(source / "dist")
    git(source, "init", "-q")
    git(source, "add", "pyproject.toml")
    git(source, "commit", "-q", "-m", "one")
    head = git(source, "rev-parse", "--short=7", "HEAD")
    assert COMMIT in built(source, "wheel")
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(COMMIT).decode().strip() == head
    unpacked = tmp_path / f"llamaswap_py-{__version__}"
    assert f"{unpacked.name}/{COMMIT}" in built(source, "sdist")
    assert COMMIT in built(unpacked, "wheel"), "from the source archive, without git"
    assert not (source / COMMIT).exists()
    assert {path.suffix for path in (source / "dist").iterdir()} == {".whl", ".gz"}
