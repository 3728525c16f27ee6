from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.nvml_fakes import NvmlWorker, build_library
from tests.devices.roots import Root


@pytest.fixture(scope="session")
def nvml_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NvmlWorker]:
    folder = tmp_path_factory.mktemp("nvml")
    build_library("fake_nvml.c", folder / "libnvidia-ml.so.1")
    worker = NvmlWorker(folder)
    yield worker
    worker.close()


@pytest.fixture
def nvml(nvml_session: NvmlWorker) -> NvmlWorker:
    """The real pynvml on the stand-in library; the script begins empty."""
    nvml_session.script()
    return nvml_session


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")
