from __future__ import annotations

from pathlib import Path

import pytest

from llamaswap_py.config.load import read_config
from llamaswap_py.errors import ConfigError


def test_a_file_is_read_with_its_folder_and_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "c.yaml").write_bytes(
        b"\xef\xbb\xbfmodels: {a: {model: a.gguf}, b: {model: ~/b.gguf}}"
    )
    monkeypatch.chdir(tmp_path)
    config = read_config("x/c.yaml")
    assert config.source == "x/c.yaml"
    assert config.models["a"].model == str(tmp_path / "x" / "a.gguf")
    assert config.models["b"].model == "/home/me/b.gguf"


def test_a_linked_file_keeps_the_folder_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "c.yaml").write_text("models: {a: {model: a.gguf}}")
    (tmp_path / "c.yaml").symlink_to("real/c.yaml")
    assert read_config(tmp_path / "c.yaml").models["a"].model == str(tmp_path / "a.gguf")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"there is no \*.yaml file in it"):
        read_config(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"models:\n  a: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2: this is not UTF-8 text"):
        read_config(tmp_path / "c.yaml")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b" " * (9 << 20))
    with pytest.raises(ConfigError, match=r"m\.gguf: this is a model .*`lswap up "):
        read_config(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b" " * (9 << 20))
    with pytest.raises(ConfigError, match="larger than 8 MiB"):
        read_config(tmp_path / "m.gguf")
