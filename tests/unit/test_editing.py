"""Changes of people's files: nothing of theirs is lost, whatever happens beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaswap_py.config.edit import add_preset, remove_preset
from llamaswap_py.errors import ConfigError

TEXT = "# mine\nmodels:\n  alpha: {model: a.gguf}  # größer\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lswap.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def _models(path: Path) -> set[str]:
    return set(yaml.safe_load(path.read_text(encoding="utf-8"))["models"])


def test_changes_at_the_same_time_are_all_kept(file: Path) -> None:
    names = [f"m{number}" for number in range(8)]
    start = threading.Barrier(len(names))

    def add(name: str) -> None:
        start.wait(60)
        add_preset(file, name, {"hf": f"user/{name}"})

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _models(file) == {"alpha", *names}


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.yaml"
    link.parent.mkdir()
    link.symlink_to(file)
    add_preset(link, "beta", {"hf": "user/beta"})
    assert link.is_symlink()
    assert _models(file) == {"alpha", "beta"}


def test_what_somebody_writes_meanwhile_is_not_overwritten(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.NamedTemporaryFile

    def edited(*args: Any, **keys: Any) -> Any:
        file.write_text("models: {theirs: {model: t.gguf}}\n")
        return make(*args, **keys)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", edited)
    with pytest.raises(ConfigError, match="changed"):
        remove_preset(file, "alpha")
    assert _models(file) == {"theirs"}
    assert os.listdir(file.parent) == [file.name]


def test_a_failure_leaves_nothing_behind(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")  # a file that is a mount point of its own

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(ConfigError, match="busy"):
        add_preset(file, "beta", {"hf": "user/beta"})
    assert os.listdir(file.parent) == [file.name]
    assert file.read_text(encoding="utf-8") == TEXT


def test_a_file_that_is_not_utf_8_is_said_to_be_none(file: Path) -> None:
    file.write_bytes(b"models: {}  # gr\xf6\xdfer\n")
    with pytest.raises(ConfigError, match="cannot be changed"):
        add_preset(file, "beta", {"hf": "user/beta"})


def test_it_is_written_as_utf_8_whatever_the_locale(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llamaswap_py.config.edit import add_preset\n"
        "add_preset(Path(sys.argv[1]), 'beta', {'hf': 'user/beta'})"
    )
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    subprocess.run(
        [sys.executable, "-c", code, str(file)], env={**os.environ, **locale}, check=True
    )
    assert "größer" in file.read_text(encoding="utf-8")
