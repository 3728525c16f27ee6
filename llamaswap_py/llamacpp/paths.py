"""The folders of engines and of their cached probes, and each engine's `manifest.json`.

The folders are those that scripts/build_llama_cpp.sh uses, on every system. The script writes the
manifest of an engine that it built, install.py that of an engine that it unpacked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from llamaswap_py.errors import EngineError
from llamaswap_py.storage.record_folder import xdg_base
from llamaswap_py.storage.regular_files import read_regular

__all__ = [
    "MANIFEST",
    "EngineManifest",
    "current_file",
    "demo_folder",
    "digest_file",
    "engines_folder",
    "probes_folder",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "manifest.json"


class EngineManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The identity and the origin of an engine.

    Unknown members are ignored, those of a newer `schema` too: an engine that a newer lswap has
    installed is still a llama-server, and it is asked what it can do.

    `server` is the path of llama-server inside the folder, `build` 0 when unknown, `date` ISO 8601
    in UTC, `version` a line of `--version`, `sha256` that of the binary.
    """

    schema: int = 1
    build: int = 0
    ref: str = ""
    backend: str = "unknown"
    source: str = ""
    date: str = ""
    version: str = ""
    sha256: str = ""
    features: tuple[str, ...] = ()
    flags: str = ""
    server: str = "bin/llama-server"


def read_manifest(folder: Path) -> EngineManifest:
    """Read the manifest of the engine in `folder`.

    Raises EngineError when there is none or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(read_regular(path), type=EngineManifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(
            f"{path} cannot be read ({error})", remedy=f"remove {folder} and build it again"
        ) from error


def write_manifest(folder: Path, manifest: EngineManifest) -> None:
    """Write the manifest into `folder`."""
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST).write_bytes(encoded + b"\n")


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def engines_folder() -> Path:
    """Return the folder of our installations, one folder each (`<build>-<backend>`)."""
    return xdg_base("XDG_DATA_HOME", ".local/share") / "lswap" / "engines"


def current_file() -> Path:
    """Return the file that holds the choice of `lswap engine use`."""
    return engines_folder() / "current"


def probes_folder() -> Path:
    """Return the folder of cached probes; safe to delete."""
    return xdg_base("XDG_CACHE_HOME", ".cache") / "lswap" / "probes"


def demo_folder() -> Path:
    """Return the folder of what `lswap demo` writes; safe to delete."""
    return probes_folder().with_name("demo")
