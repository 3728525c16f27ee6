"""Installs llama-server from a release of llama.cpp: the archive that fits this machine.

So a machine needs no compiler. If an archive does not start here, the next one that fits is tried.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.install import (
    check_digest,
    check_name,
    pinned_ref,
    place_engine,
    read_digest,
    scratch_folder,
    unpack_server,
)
from llamaswap_py.llamacpp.paths import digest_file, engines_folder, read_manifest
from llamaswap_py.llamacpp.probe import Engine, probe_engine
from llamaswap_py.llamacpp.release_assets import (
    BUILD_IT,
    CHOICES,
    Offer,
    Platform,
    backends_for,
    newest_offers,
    offers_of,
    too_old_for,
)
from llamaswap_py.llamacpp.release_server import ReleaseServer
from llamaswap_py.redaction import without_user
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["install_release", "this_platform", "update_engine"]

_NO_CUDA: Final = "llama.cpp releases no CUDA build for Linux"


def install_release(
    ref: str | None = None,
    *,
    newest: bool = False,
    backend: str = "auto",
    sha256: str | None = None,
    name: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Engine:
    """Install the llama-server of a release, beside the engines that are there.

    The release is `ref`, or the newest one that has an archive for this machine, or the one that
    lswap is tested with. `backend` is one of CHOICES. `sha256` is that of the archive, where the
    release does not say it. `say` gets a line for each step.

    Raises EngineError, and installs nothing, when there is no archive that fits and starts.
    """
    wanted = read_digest(sha256) if sha256 is not None else None
    check_name(name)
    machine = this_platform()
    backends = _backends(machine, backend)
    tag = ref or pinned_ref()
    if not re.fullmatch(r"b\d{1,9}", tag):
        raise EngineError(f"{tag} is not a release of llama.cpp", remedy="write it like b11434")
    with ReleaseServer() as server:
        if newest:
            offers = newest_offers(server.newest(), machine, backends)
        else:
            offers = offers_of(server.release(tag), machine, backends)
        if not offers:
            raise _no_archive("the newest releases have" if newest else f"{tag} has", backends)
        if backend == "auto":
            for line in _unused(machine, offers[0].backend):
                say(line)
        return _first_that_starts(
            server, offers[:1] if wanted else offers, machine, wanted, name, say, on_progress
        )


def update_engine(
    current: Engine | None,
    *,
    backend: str = "auto",
    say: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Engine | None:
    """Install the newest release; return None if `current` is as new, and of the same backend.

    Without `backend` it is the one of `current`.
    """
    machine = this_platform()
    asked = backend
    if asked == "auto" and current is not None:
        backend = current.backend if current.backend in CHOICES else "auto"
    backends = _backends(machine, backend)
    with ReleaseServer() as server:
        offers = newest_offers(server.newest(), machine, backends)
        if not offers:
            raise _no_archive("the newest releases have", backends)
        build = int(offers[0].tag.removeprefix("b"))
        same = current is not None and asked in ("auto", current.backend)
        if current is not None and same and (current.build or 0) >= build:
            return None
        return _first_that_starts(server, offers, machine, None, None, say, on_progress)


def this_platform() -> Platform:
    """Find out what decides which archive can run here."""
    nvidia = os.path.exists("/dev/nvidiactl")
    card = nvidia or any(Path("/dev/dri").glob("renderD*"))
    rocm = ""
    if os.path.exists("/dev/kfd"):
        with suppress(OSError, UnicodeDecodeError):
            rocm = Path("/opt/rocm/.info/version").read_text(encoding="utf-8").strip()
    libc = ""
    with suppress(ValueError, OSError, AttributeError):
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    return Platform(
        system=sys.platform,
        processor=platform.machine().lower(),
        libc=libc,
        card=card,
        nvidia=nvidia,
        rocm=rocm,
        vulkan=card and ctypes.util.find_library("vulkan") is not None,
    )


def _unused(machine: Platform, backend: str) -> Iterator[str]:
    """Say which card the archive for `backend` does not use as well as another engine could."""
    if machine.nvidia and backend != "cuda":
        yield f"{_NO_CUDA}; for the NVIDIA card: `lswap engine build --backend cuda`"
    if machine.card and backend == "cpu":
        yield (
            "this archive uses no graphics card: libvulkan is not installed here (apt-get install "
            "libvulkan1, then `lswap engine install --backend vulkan`)"
            if not machine.vulkan
            else "this archive uses no graphics card: the release has no other that fits"
        )


def _backends(machine: Platform, backend: str) -> tuple[str, ...]:
    if backend not in CHOICES:
        raise EngineError(
            f"there is no backend {backend}", remedy=f"take one of {', '.join(CHOICES)}"
        )
    return backends_for(machine, backend)


def _no_archive(where: str, backends: tuple[str, ...]) -> EngineError:
    if backends == ("cuda",):
        return EngineError(
            _NO_CUDA,
            remedy="`lswap engine build --backend cuda` builds one (20 to 60 minutes), or take "
            "Vulkan's: `--backend vulkan`",
        )
    return EngineError(
        f"{where} no archive for this machine ({' or '.join(backends)})",
        remedy=f"take another --ref, or --latest; {BUILD_IT}",
    )


def _first_that_starts(
    server: ReleaseServer,
    offers: list[Offer],
    machine: Platform,
    sha256: str | None,
    name: str | None,
    say: Callable[[str], None],
    on_progress: Callable[[int, int | None], None],
) -> Engine:
    failed: list[str] = []
    for offer in offers:
        if failed:
            say(f"{failed[-1]}; trying {offer.asset.name}")
        engine = _installed(name or offer.asset.engine_name, offer.tag)
        if engine is not None:
            say(f"{name or offer.asset.engine_name} is installed already")
            return engine
        try:
            return _install(server, offer, sha256, name, say, on_progress)
        except _NotStarting as error:
            why = too_old_for(str(error), machine.libc) or str(error)
            failed.append(f"{offer.asset.name} does not start here: {why}")
    raise EngineError("; ".join(failed), remedy=BUILD_IT)


class _NotStarting(Exception):
    """Raised when the llama-server of an archive does not run on this machine."""


def _install(
    server: ReleaseServer,
    offer: Offer,
    sha256: str | None,
    name: str | None,
    say: Callable[[str], None],
    on_progress: Callable[[int, int | None], None],
) -> Engine:
    asset = offer.asset
    digest = _digest_of(offer, sha256)
    say(f"downloading {asset.name} ({format_size(asset.size)})")
    with scratch_folder() as scratch:
        archive, tree = scratch / asset.name, scratch / "tree"
        server.download(asset, archive, on_progress)
        check_digest(archive, asset.name, digest)
        binary = unpack_server(archive, tree)
        archive.unlink()
        try:
            engine = probe_engine(binary, "archive", cached=False)
        except EngineError as error:
            raise _NotStarting(
                error.message.replace(f"{scratch}{os.sep}tree{os.sep}", "")
            ) from error
        return place_engine(
            tree,
            engine,
            without_user(asset.browser_download_url),
            name or asset.engine_name,
            offer.tag,
        )


def _digest_of(offer: Offer, sha256: str | None) -> str:
    """Return the SHA-256 that the archive must have; raises EngineError if it is unknown."""
    said = offer.asset.digest or ""
    if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", said):
        if sha256 is None:
            raise EngineError(
                f"the release {offer.tag} does not say the SHA-256 of {offer.asset.name}, so "
                "nothing was installed",
                remedy="give it with --sha256, from a source that you trust",
            )
        return sha256
    digest = read_digest(said)
    if sha256 is not None and sha256 != digest:
        raise EngineError(
            f"{offer.asset.name} has SHA-256 {digest} in the release, not {sha256}",
            remedy="the file is not the one that you expect: do not use it",
        )
    return digest


def _installed(name: str, tag: str) -> Engine | None:
    """Return the engine that an earlier run installed from the same release, if it works."""
    folder = engines_folder() / name
    try:
        manifest = read_manifest(folder)
        server = folder / manifest.server
        if manifest.ref != tag or digest_file(server) != manifest.sha256:
            return None
        return probe_engine(server, f"installed {name}")
    except (EngineError, OSError):
        return None
