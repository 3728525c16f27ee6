"""The fixtures of `basics.py`: the lab of the other tests, and the llama-server that is tried."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.llamacpp.probe import probe_engine
from tests.real.conftest import lab

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.probe import Engine

__all__ = ["engine", "lab"]


@pytest.fixture
def engine(llama_server: str) -> Engine:
    """What lswap finds out about the llama-server."""
    return probe_engine(Path(llama_server), "test")
