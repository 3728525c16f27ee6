"""What is said of the files of presets, and when it is said no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.devices import Device
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import is_mended, prepare
from llamaswap_py.supervisor.preset_servers import ServerTries
from llamaswap_py.units import GIB, HOST


@pytest.mark.parametrize(
    ("keys", "says", "make"),
    [
        ("model: a.gguf", "there is no such file", "a.gguf"),
        ("model: page.gguf", "with GGUF) - download it again", "page.gguf"),
        ("model: folder", "name a file in it, or use model_dirs", None),
        ("model: b.gguf, args: {slot-save-path: kept}", "make the folder", "kept/"),
    ],
)
def test_a_wrong_file_is_told_once_and_forgotten_when_it_is_mended(
    tmp_path: Path, keys: str, says: str, make: str | None
) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    text = f"models: {{a: {{{keys}, memory: {{host: 1MiB}}}}}}"
    config = load_config(text, path=None, base_dir=str(tmp_path), env={}, home="/")
    one = prepare(config, Engines(config), (Device(HOST, GIB, 0, "declared"),))["a"]
    assert any(says in f"{each.message} - {each.remedy}" for each in one.problems), one.problems
    assert not is_mended(one, config, ServerTries())
    if make is not None:
        file = tmp_path / make
        file.mkdir() if make.endswith("/") else file.write_bytes(b"GGUF")
        assert is_mended(one, config, ServerTries())
