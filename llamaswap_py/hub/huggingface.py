"""All names that lswap uses from huggingface_hub, the private ones among them.

Importing this module loads the library, which takes long, so other modules import it in functions.
If a release lacks one of the names, `tests/hub/test_huggingface.py` fails and says which.
"""

from __future__ import annotations

from huggingface_hub import (
    constants,
    errors,
    get_hf_file_metadata,
    get_session,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory, hf_raise_for_status

__all__ = [
    "build_hf_headers",
    "constants",
    "default_client_factory",
    "errors",
    "get_hf_file_metadata",
    "get_session",
    "hf_hub_url",
    "hf_raise_for_status",
    "http_get",
    "set_client_factory",
]
