"""The one fixture of the end-to-end tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.lab import Lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyModel


@pytest.fixture
def lab(short_dir: Path, llama_server: str, tiny_model: TinyModel) -> Lab:
    """A folder of its own, the real llama-server, and tiny models."""
    return Lab(short_dir, llama_server, tiny_model)
