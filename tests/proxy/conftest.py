"""Every wire test runs on uvloop and on plain asyncio."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run on both event loops."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder whose path is short enough for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="wire"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
