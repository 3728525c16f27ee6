"""Find downloaded models in the cache that all of Hugging Face's tools share, without their code.

Layout (huggingface_hub's documentation, "Understand caching"):
`models--USER--REPO/refs/main` holds a commit, `snapshots/COMMIT/PATH` links to a complete file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamaswap_py.hub.refs import HubError, HubFile, HubRef, builds_of, choose, projector_of


@dataclass(frozen=True, slots=True)
class Cached:
    """A model that is on the disk: its first file, all of them, and the projector beside it."""

    files: tuple[str, ...]
    projector: str | None = None

    @property
    def model(self) -> str:
        """The file to load: the first shard."""
        return self.files[0]


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return the hub's cache folder, as huggingface_hub's constants.py finds it."""
    env = os.environ if environment is None else environment
    if folder := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def repo_folder(ref: HubRef, folder: Path | None = None) -> Path:
    """Return where the cache keeps a repository."""
    return (folder or cache_folder()) / f"models--{ref.repo.replace('/', '--')}"


def find_cached(ref: HubRef, folder: Path | None = None) -> Cached | None:
    """Return the model of `ref` if all its files are there; touches nothing but the disk."""
    repo = repo_folder(ref, folder)
    for snapshot in _snapshots(repo):
        files = [
            HubFile(path.relative_to(snapshot).as_posix(), path.stat().st_size)
            for path in sorted(snapshot.rglob("*.gguf"))
            if path.is_file()
        ]
        try:
            build = choose(ref, builds_of(files))
        except HubError:
            continue
        projector = projector_of(files)
        return Cached(
            tuple(str(snapshot / file.path) for file in build.files),
            None if projector is None else str(snapshot / projector.path),
        )
    return None


def _snapshots(repo: Path) -> list[Path]:
    """Return the snapshots of a repository, that of its main branch first."""
    try:
        newest = (repo / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        newest = ""
    try:
        found = [path for path in (repo / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (path.name != newest, path.name))


def remove_cached(ref: HubRef, folder: Path | None = None) -> int:
    """Delete the files of one model from the cache; returns the bytes that this freed.

    Blobs that another snapshot still links to stay.
    """
    cached = find_cached(ref, folder)
    if cached is None:
        return 0
    repo = repo_folder(ref, folder)
    blobs = {Path(file).resolve() for file in cached.files}
    for file in cached.files:
        Path(file).unlink(missing_ok=True)
    linked = {path.resolve() for path in (repo / "snapshots").rglob("*") if path.is_symlink()}
    freed = 0
    for blob in blobs - linked:
        if blob.is_file() and blob.is_relative_to(repo.resolve()):
            freed += blob.stat().st_size
            blob.unlink()
    return freed
