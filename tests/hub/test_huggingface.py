"""What lswap relies on in huggingface_hub: a release that drops a name fails here, by that name."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "llamaswap_py"
ONLY = "hub/huggingface.py"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        # Private: not in the library's documentation.
        ("huggingface_hub.utils._http", "default_client_factory"),
        ("huggingface_hub.utils._http", "hf_raise_for_status"),
        ("huggingface_hub.utils._headers", "build_hf_headers"),
        ("huggingface_hub.file_download", "http_get"),
        ("huggingface_hub.constants", "DOWNLOAD_CHUNK_SIZE"),
        # Public.
        ("huggingface_hub", "get_session"),
        ("huggingface_hub", "set_client_factory"),
        ("huggingface_hub", "get_hf_file_metadata"),
        ("huggingface_hub", "hf_hub_url"),
        ("huggingface_hub.constants", "ENDPOINT"),
        ("huggingface_hub.errors", "GatedRepoError"),
        ("huggingface_hub.errors", "RepositoryNotFoundError"),
        ("huggingface_hub.errors", "HfHubHTTPError"),
        ("huggingface_hub.errors", "OfflineModeIsEnabled"),
    ],
)
def test_the_library_has_what_is_used_of_it(module: str, name: str) -> None:
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize(
    "argument", ["url", "temp_file", "resume_size", "headers", "expected_size", "tqdm_class"]
)
def test_http_get_takes_what_it_is_given(argument: str) -> None:
    from llamaswap_py.hub.huggingface import http_get

    assert argument in inspect.signature(http_get).parameters


def test_one_file_imports_the_library() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if re.search(r"^\s*(from|import) huggingface_hub", path.read_text(), re.MULTILINE)
    }
    assert found == {ONLY}
