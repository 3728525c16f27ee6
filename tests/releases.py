"""The earlier releases of lswap, which tests run beside today's code."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
RELEASES: Final = {
    "0.1.0": "f3f26f75ebe9d3744c6b12c1d66c87814e8d28ff",
    "0.2.0": "3084e5179fdaf03b23d3ed10fc236a113a598301",
}
"""The commits of the releases. Each new release is added here."""


def unpack_release(version: str, folder: Path) -> Path:
    """Unpack the package of a release, taken from the repository's history, into a folder."""
    command = ["git", "-C", str(ROOT), "archive", RELEASES[version], "llamaswap_py"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("missing: the history of the repository (a full git clone)")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
