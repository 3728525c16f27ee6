"""The process that downloads: `python -m llamaswap_py.hub.fetch`, one JSON line per step.

It is a separate process for two reasons. It can be killed at any byte, after which the next one
continues from the downloaded bytes. And lswap itself does not load the hub's library.

Standard input: one JSON object, `Order`. Standard output: `Step` lines, the last one `done` or
`failed`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

import msgspec

from llamaswap_py.hub.api import ANSWERS, headers_for, prepare_session, within
from llamaswap_py.hub.cache import PART, cache_folder, keep_listing, repo_folder
from llamaswap_py.hub.refs import HubError, HubRef, builds_of, choose, heads_of, projector_of
from llamaswap_py.units import format_size

_EVERY: Final = 0.2
"""Seconds between two progress lines."""
_CHUNK: Final = 256 << 10
"""Bytes of one read, which are lost by a kill. With the library's 10 MiB progress would jump."""
_BLOCK: Final = 4 << 20
_STALLED: Final = 360.0
"""Seconds without a byte of a file until the download fails. The hub's own rate limits last 300."""
_ETAG: Final = re.compile(r"[A-Za-z0-9][\w-]{0,127}", re.ASCII)
_SPARE: Final = 256 << 20
"""The free bytes that a download leaves on the disk."""


class WantedFile(msgspec.Struct, frozen=True):
    """One file to fetch."""

    path: str
    size: int
    sha256: str = ""


class Order(msgspec.Struct, frozen=True):
    """What to download: `files` at a commit, or, if empty, the model that `tag` names.

    `heads` are the kinds of draft heads to fetch as well, as values of `spec-type`.
    """

    repo: str
    commit: str = ""
    files: tuple[WantedFile, ...] = ()
    tag: str = ""
    heads: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """Progress of a download in bytes; `state`: `downloading`, `verifying`, `done` or `failed`."""

    state: str
    done: int = 0
    total: int = 0
    file: str = ""
    paths: tuple[str, ...] = ()
    error: str = ""
    remedy: str = ""


Report = Callable[[Step], None]


def fetch(order: Order, report: Report) -> tuple[str, ...]:
    """Download all files of an order into the shared cache; returns their paths.

    Raises HubError if the disk is full, the server refuses or breaks off, or a file is not the one
    that the hub lists.
    """
    total = sum(file.size for file in order.files)
    _check_room(order, total)
    ref = HubRef(order.repo)
    paths: list[str] = []
    before = 0
    for file in order.files:
        paths.append(_fetch_one(ref, order.commit, file, _Meter(report, before, total, file.path)))
        before += file.size
    return tuple(paths)


def complete(order: Order) -> Order:
    """Return an order with its files, asked from the hub: all shards, projector, wanted heads."""
    from llamaswap_py.hub.api import list_repo

    ref = HubRef(order.repo, order.tag)
    listing = list_repo(ref)
    chosen = list(choose(ref, builds_of(listing.files)).files)
    heads = heads_of(listing.files, chosen[0].path)
    beside = [projector_of(listing.files, chosen[0].path), *map(heads.get, order.heads)]
    chosen += [one for one in beside if one is not None]
    keep_listing(ref, listing.files)
    files = tuple(WantedFile(file.path, file.size, file.sha256) for file in chosen)
    return Order(order.repo, listing.commit, files, order.tag)


def _fetch_one(ref: HubRef, commit: str, file: WantedFile, meter: _Meter) -> str:
    there = _snapshot_path(ref, commit, file.path)
    if there.is_file() and there.stat().st_size == file.size:
        meter.at(file.size, "downloading")
        return str(there)
    try:
        _download(ref, commit, file, there, meter)
    except OSError as error:
        # The library raises OSError without a number for a stream of the wrong length.
        full = error.errno == errno.ENOSPC
        raise HubError(
            f"{file.path} could not be written: {error.strerror or error}",
            remedy=f"make room in {cache_folder()}; the bytes so far are kept"
            if full
            else "try again; the download continues where it stopped",
        ) from error
    return str(there)


def _download(ref: HubRef, commit: str, file: WantedFile, link: Path, meter: _Meter) -> None:
    """Fetch one file into the cache, continuing an earlier attempt.

    huggingface_hub itself starts over in each process (file_download.py, 1.33), so lswap uses only
    its HTTP part.
    """
    from llamaswap_py.hub.api import hub_errors
    from llamaswap_py.hub.huggingface import (
        build_hf_headers,
        constants,
        get_hf_file_metadata,
        hf_hub_url,
        http_get,
    )

    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    url = hf_hub_url(ref.repo, file.path, revision=commit)
    prepare_session()
    with hub_errors(ref):
        about = within(ANSWERS, lambda: get_hf_file_metadata(url))
    blob = repo_folder(ref) / "blobs" / _blob_name(file, about.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not blob.is_file():
        part = blob.with_name(f"{blob.name}{PART}")
        with part.open("ab", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # another lswap may fetch the same file
            begun = stream.tell()
            if begun > file.size:
                begun = stream.truncate(0)
            meter.at(begun, "downloading")
            get = partial(
                http_get,
                about.location,
                cast("BinaryIO", _Sized(stream, file, part)),
                resume_size=begun,
                headers=headers_for(about.location, url, build_hf_headers()),
                expected_size=file.size,
                tqdm_class=_bar_class(meter),
            )
            with hub_errors(ref):
                within(_STALLED, get, lambda: meter.moved)
            os.fsync(stream.fileno())
            _verify(part, file, meter)
            part.rename(blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    main = repo_folder(ref) / "refs" / "main"
    main.parent.mkdir(parents=True, exist_ok=True)
    main.write_text(commit, encoding="utf-8")


def _blob_name(file: WantedFile, etag: str | None) -> str:
    """Return a file's name in the cache: its hash, else the ETag that the server sent."""
    name = file.sha256 or etag or ""
    if not _ETAG.fullmatch(name):
        raise HubError(
            f"{file.path} has no ETag that can name a file: {name[:80]!r}",
            remedy="check HF_ENDPOINT, or ask another server",
        )
    return name


class _Sized:
    """A file that refuses more bytes than the hub lists, because they could fill the disk."""

    def __init__(self, stream: IO[bytes], file: WantedFile, part: Path) -> None:
        self._stream = stream
        self._file = file
        self._part = part
        self.tell, self.seek, self.truncate = stream.tell, stream.seek, stream.truncate
        self.flush = stream.flush

    def write(self, data: bytes) -> int:
        if self._stream.tell() + len(data) > self._file.size:
            self._part.unlink(missing_ok=True)
            raise HubError(
                f"the server sends more of {self._file.path} than the {self._file.size:,} bytes "
                "that the hub lists",
                remedy="the download was deleted; try again, or ask another server",
            )
        return _write_all(self._stream, data)


def _write_all(stream: IO[bytes], data: bytes) -> int:
    """Write all of `data` to an unbuffered file, which may take it in parts."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]
    return len(data)


def _check_room(order: Order, total: int) -> None:
    """Raise HubError when the disk does not have room for the missing bytes."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    missing = total - _already_there(order, folder)
    free = shutil.disk_usage(folder).free
    if missing > 0 and missing + _SPARE > free:
        raise HubError(
            f"the download needs {format_size(missing)}, but {folder} has {format_size(free)} free",
            remedy="make room, or set HF_HUB_CACHE to a folder on another disk",
        )


def _already_there(order: Order, folder: Path) -> int:
    """Return the bytes of an order that are on the disk, in complete and partial files."""
    blobs = folder / f"models--{order.repo.replace('/', '--')}" / "blobs"
    there = 0
    for file in order.files:
        if _snapshot_path(HubRef(order.repo), order.commit, file.path).is_file():
            there += file.size
        elif file.sha256:
            part = blobs / f"{file.sha256}{PART}"
            there += min(part.stat().st_size if part.is_file() else 0, file.size)
    return there


def _snapshot_path(ref: HubRef, commit: str, path: str) -> Path:
    repo = cache_folder() / f"models--{ref.repo.replace('/', '--')}"
    return repo / "snapshots" / commit / path


def _verify(path: Path, file: WantedFile, meter: _Meter) -> None:
    """Raise HubError and delete the file if its size or hash is not the one that the hub lists."""
    if not file.sha256:
        return
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            meter.at(done, "verifying")
    if digest.hexdigest() == file.sha256:
        return
    path.unlink(missing_ok=True)
    raise HubError(
        f"{file.path} arrived damaged: its SHA-256 is {digest.hexdigest()[:12]}…, "
        f"the hub says {file.sha256[:12]}…",
        remedy="it was deleted; try again",
    )


class _Meter:
    """Adds up the bytes of all files, and reports progress at intervals."""

    def __init__(self, report: Report, before: int, total: int, file: str) -> None:
        self._report = report
        self._before = before
        self._total = total
        self._file = file
        self._state, self._done = "", -1
        self._next = 0.0
        self.moved = time.monotonic()
        """The time of the last progress."""

    def at(self, done: int, state: str) -> None:
        """Note that `done` bytes of this file have been downloaded or verified."""
        self.moved = now = time.monotonic()
        begins = state != self._state
        if (begins or now >= self._next) and (state, done) != (self._state, self._done):
            self._state, self._done = state, done
            self._next = 0.0 if begins else now + _EVERY  # the next step is reported at once
            self._report(Step(state, self._before + done, self._total, self._file))


def _bar_class(meter: _Meter) -> Any:
    """Return a progress bar for huggingface_hub that draws nothing and reports to `meter`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            options["disable"] = False
            options["file"] = _Nowhere()
            super().__init__(*args, **options)
            meter.at(int(self.n), "downloading")

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            meter.at(int(self.n), "downloading")
            return shown

    return Bar


class _Nowhere:
    def write(self, _: str) -> None:
        """Discard a text."""

    def flush(self) -> None:
        """Nothing to do."""


def main() -> int:
    """Execute the order on standard input; return 1 if it failed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    total = 0

    def report(step: Step) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
        sys.stdout.buffer.flush()

    try:
        if not order.files:
            order = complete(order)
        total = sum(file.size for file in order.files)
        paths = fetch(order, report)
    except HubError as error:
        report(Step("failed", error=error.message, remedy=error.remedy))
        return 1
    except Exception as error:  # the library may raise any error for an invalid answer
        report(Step("failed", error=f"{type(error).__name__}: {error}"[:500]))
        return 1
    report(Step("done", total, total, paths=paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
