"""Looks into the folders of models, which wait for nobody and for which nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llamaswap_py.config.discovery import Folder
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.supervisor import reload
from llamaswap_py.supervisor.reload import Scout, scan_folders


def soon(found: Callable[[], tuple[Folder, ...] | None]) -> tuple[Folder, ...]:
    deadline = time.monotonic() + 20
    while (now := found()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return now


def test_a_look_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "alpha.gguf").write_bytes(b"GGUF")
    empty = (Folder(str(tmp_path)),)
    with Scout[tuple[Folder, ...]]() as scout:
        assert scout.found() is None
        scout.send(partial(scan_folders, empty))
        assert soon(scout.found) == (scan_folder(str(tmp_path)),)
        assert scout.found() is None


def test_a_folder_that_hangs_is_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, may_end = [], threading.Event()

    def hang(path: str) -> Folder:
        looks.append(path)
        may_end.wait(60)
        return Folder(path)

    monkeypatch.setattr(reload, "scan_folder", hang)
    with Scout[tuple[Folder, ...]]() as scout:
        for _ in range(3):
            scout.send(partial(scan_folders, (Folder("/far/away"),)))
            assert scout.found() is None
        may_end.set()
        assert soon(scout.found) == (Folder("/far/away"),)
    assert looks == ["/far/away"]
