"""Finds downloaded models in the cache that all tools of Hugging Face share, without their code.

Layout (huggingface_hub's documentation, "Understand caching"):
`models--USER--REPO/refs/main` contains a commit, `snapshots/COMMIT/PATH` links to a complete file.
Beside them lswap writes the repository's list of files, `.lswap.json`. With it a reference always
means the same file, whichever files of the repository are downloaded.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from llamaswap_py.hub.refs import (
    Build,
    HubError,
    HubFile,
    HubRef,
    builds_of,
    choose,
    heads_of,
    projector_of,
)
from llamaswap_py.storage.record_folder import xdg_base
from llamaswap_py.storage.regular_files import open_regular, read_regular
from llamaswap_py.units import is_utf8

PART: Final = ".lswap-part"
"""The ending of the name of an incomplete file."""
_LISTING: Final = ".lswap.json"


@dataclass(frozen=True, slots=True)
class Cached:
    """A model on the disk: all its files, the first one first, and its projector.

    `heads` are the draft heads on the disk, by the value of `spec-type` that uses them. `others`
    are further kinds of draft heads in its repository, as far as they are known.
    """

    files: tuple[str, ...]
    projector: str | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The file to load: the first shard."""
        return self.files[0]


def cache_folder() -> Path:
    """Return the hub's cache folder, as huggingface_hub's constants.py finds it.

    A relative `XDG_CACHE_HOME` is ignored, as the XDG specification wants; huggingface_hub takes it
    from the folder that it runs in.
    """
    env = os.environ
    if folder := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return xdg_base("XDG_CACHE_HOME", ".cache") / "huggingface" / "hub"


def repo_folder(ref: HubRef, folder: Path | None = None) -> Path:
    """Return the folder of a repository in the cache."""
    return (folder or cache_folder()) / f"models--{ref.repo.replace('/', '--')}"


def keep_listing(ref: HubRef, files: Iterable[HubFile]) -> None:
    """Write the list of a repository's files beside its downloaded files."""
    repo = repo_folder(ref)
    repo.mkdir(parents=True, exist_ok=True)
    sizes = {file.path: file.size for file in files if file.path.lower().endswith(".gguf")}
    new = repo / f"{_LISTING}.{os.getpid()}"
    new.write_bytes(msgspec.json.encode(sizes))
    new.replace(repo / _LISTING)


def find_cached(ref: HubRef, folder: Path | None = None) -> Cached | None:
    """Return the model of `ref` if all its files are there; it does not use the network."""
    repo = repo_folder(ref, folder)
    listed = _listed(repo)
    meant = _chosen(ref, listed)
    for snapshot in _snapshots(repo):
        files = _files_in(snapshot)
        here = {file.path for file in files}
        build = meant or _chosen(ref, files)
        if build is None or not {file.path for file in build.files} <= here:
            continue
        first = build.files[0].path
        projector = projector_of(files, first)
        heads = {kind: str(snapshot / head.path) for kind, head in heads_of(files, first).items()}
        return Cached(
            tuple(str(snapshot / file.path) for file in build.files),
            None if projector is None else str(snapshot / projector.path),
            heads,
            tuple(kind for kind in heads_of(listed, first) if kind not in heads),
        )
    return None


def _listed(repo: Path) -> tuple[HubFile, ...]:
    try:
        sizes = msgspec.json.decode(read_regular(repo / _LISTING), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return ()
    return tuple(HubFile(path, size) for path, size in sizes.items())


def _chosen(ref: HubRef, files: Iterable[HubFile]) -> Build | None:
    try:
        return choose(ref, builds_of(files))
    except HubError:
        return None


def _files_in(snapshot: Path) -> list[HubFile]:
    return [
        HubFile(path.relative_to(snapshot).as_posix(), path.stat().st_size)
        for path in sorted(snapshot.rglob("*.gguf"))
        if is_utf8(str(path)) and path.is_file()
    ]


def _snapshots(repo: Path) -> list[Path]:
    """Return the snapshots of a repository; the one of its main branch comes first."""
    try:
        newest = read_regular(repo / "refs" / "main").decode().strip()
    except (OSError, UnicodeDecodeError):
        newest = ""
    try:
        found = [
            path for path in (repo / "snapshots").iterdir() if is_utf8(str(path)) and path.is_dir()
        ]
    except OSError:
        return []
    return sorted(found, key=lambda path: (path.name != newest, path.name))


def own_files(
    ref: HubRef, folder: Path | None = None, *, used: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the files that only this model uses: shards, projector, draft heads.

    `used` are the real paths of files that other presets need. A sidecar is not among the files if
    another downloaded model can use it.
    """
    cached = find_cached(ref, folder)
    if cached is None:
        return ()
    snapshot = _snapshot_of(cached, repo_folder(ref, folder))
    mine = {Path(file).relative_to(snapshot).as_posix() for file in cached.files}
    left = [file for file in _files_in(snapshot) if file.path not in mine]
    served: set[str] = set()
    for build in builds_of(left):
        projector = projector_of(left, build.files[0].path)
        served |= {projector.path} if projector else set()
        served |= {head.path for head in heads_of(left, build.files[0].path).values()}
    beside = [cached.projector, *cached.heads.values()]
    files = [
        *cached.files,
        *(one for one in beside if one and _inside(one, snapshot) not in served),
    ]
    return tuple(file for file in files if os.path.realpath(file) not in used)


def remove_cached(
    ref: HubRef, folder: Path | None = None, *, used: Collection[str] = (), alone: bool = False
) -> int:
    """Delete the files of one model from the cache; returns the freed bytes.

    A blob stays if another snapshot links to it. `alone`: no other preset needs a file of this
    repository. Then, if it has no other model, its other files and partial downloads are deleted
    as well.
    """
    repo = repo_folder(ref, folder)
    snapshots = repo / "snapshots"
    freed = _unlink(repo, own_files(ref, folder, used=used))
    if not alone or any(builds_of(_files_in(one)) for one in _snapshots(repo)):
        return freed
    left = [str(one) for one in snapshots.rglob("*.gguf")]
    freed += _unlink(repo, [one for one in left if os.path.realpath(one) not in used])
    begun = any(_is_written(part) for part in (repo / "blobs").glob(f"*{PART}"))
    if not begun and all(one.is_dir() for one in snapshots.rglob("*")):
        shutil.rmtree(repo, ignore_errors=True)
    return freed


def _unlink(repo: Path, files: Iterable[str]) -> int:
    """Delete files of snapshots, and their blobs unless other files link to them."""
    blobs = set()
    for file in map(Path, files):
        blobs.add(file.resolve())
        file.unlink(missing_ok=True)
    linked = {path.resolve() for path in (repo / "snapshots").rglob("*") if path.is_symlink()}
    freed = 0
    for blob in blobs - linked:
        if blob.is_file() and blob.is_relative_to(repo.resolve()):
            freed += blob.stat().st_size
            blob.unlink()
    return freed


def _snapshot_of(cached: Cached, repo: Path) -> Path:
    commit = Path(cached.model).relative_to(repo / "snapshots").parts[0]
    return repo / "snapshots" / commit


def _inside(file: str, snapshot: Path) -> str:
    return Path(file).relative_to(snapshot).as_posix()


def _is_written(part: Path) -> bool:
    """Return whether a download is writing a file, which fetch.py then has locked."""
    try:
        with open_regular(part) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
