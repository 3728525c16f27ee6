"""The source tree of the llama-server that the tests run, if lswap's script built it."""

from __future__ import annotations

import os
from pathlib import Path

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.paths import MANIFEST, read_manifest


def source_of(server: Path, needed: str = "tools/server") -> Path:
    """Return the tree; raises EngineError if there is none with the folder `needed`."""
    folder = server.parent.parent
    if not (folder / MANIFEST).is_file():
        raise EngineError(f"{server} was not built by lswap", remedy="name its --source")
    manifest = read_manifest(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    source = cache / "lswap" / "build" / "src" / f"{manifest.source}-{manifest.ref}"
    if not (source / needed).is_dir():
        raise EngineError(
            f"there is no {needed} in {source}",
            remedy="build the engine again (`lswap engine build`), or name its --source",
        )
    return source
