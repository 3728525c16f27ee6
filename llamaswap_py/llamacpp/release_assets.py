"""Which archive of a llama.cpp release fits a machine, by the names of the release's assets.

The names are `llama-bN-bin-ubuntu-x64.tar.gz`, `…-ubuntu-vulkan-x64…`, `…-ubuntu-rocm-7.2-x64…`,
`…-macos-arm64…` and the like. Names that are not understood are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.backends import NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CHOICES",
    "Offer",
    "Platform",
    "Release",
    "ReleaseAsset",
    "backends_for",
    "newest_offers",
    "offers_of",
    "too_old_for",
]

CHOICES: Final = ("auto", *NAMES)
"""What `--backend` may say."""
BUILD_IT: Final = "`lswap engine build` builds one for this machine"

_NAME: Final = re.compile(
    r"llama-(?P<tag>b\d{1,9})-bin-(?P<system>ubuntu|macos)-"
    r"(?:(?P<backend>[a-z]+)(?:-(?P<version>\d{1,6}(?:\.\d{1,6}){0,3}))?-)?"
    r"(?P<arch>x64|arm64)\.(?P<ending>tar\.gz|zip)"
)
_ARCHES: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_SYSTEMS: Final = {"linux": "ubuntu", "darwin": "macos"}


class ReleaseAsset(msgspec.Struct, frozen=True):
    """A file of a release, as GitHub's API lists it. `digest` is `sha256:…`."""

    name: str
    size: int
    browser_download_url: str
    digest: str | None = None
    state: str = "uploaded"

    @property
    def engine_name(self) -> str:
        """The name of the installation: `b11434-ubuntu-vulkan-x64`."""
        return re.sub(r"\.(tar\.gz|zip)$", "", self.name.removeprefix("llama-")).replace(
            "-bin-", "-", 1
        )


class Release(msgspec.Struct, frozen=True):
    """A release of llama.cpp, as GitHub's API lists it."""

    tag_name: str
    assets: list[ReleaseAsset] = []
    draft: bool = False
    prerelease: bool = False

    @property
    def build(self) -> int:
        """The number of the build; 0 if the tag is not like `b11434`."""
        found = re.fullmatch(r"b(\d{1,9})", self.tag_name)
        return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Platform:
    """What decides which archive can run here.

    `system` and `processor` are those of Python's `platform`, in lower case. `libc` is like
    `glibc 2.36`, "" if it is not glibc. `card` tells whether there is a graphics card, `nvidia` one
    of NVIDIA. `rocm` is the installed version of ROCm, "" without. `vulkan` needs its loader, too.
    """

    system: str
    processor: str
    libc: str = ""
    card: bool = False
    nvidia: bool = False
    rocm: str = ""
    vulkan: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """An archive that fits: the release it is from, and the backend that it was built for."""

    tag: str
    backend: str
    asset: ReleaseAsset


def backends_for(machine: Platform, wanted: str) -> tuple[str, ...]:
    """Return the backends to look for, the best first; `wanted` is one of CHOICES.

    Raises EngineError when no release runs on such a machine, or none with that backend.
    """
    if machine.system not in _SYSTEMS:
        raise EngineError(
            f"lswap does not use llama.cpp's releases for {machine.system}", remedy=BUILD_IT
        )
    if machine.processor not in _ARCHES:
        raise EngineError(
            f"llama.cpp has no release for this processor ({machine.processor})", remedy=BUILD_IT
        )
    if machine.system == "darwin":
        if wanted not in ("auto", "cpu", "metal"):
            raise EngineError(
                f"llama.cpp has no {wanted} release for macOS", remedy="leave --backend out"
            )
        return ("metal",)
    if not machine.libc:
        raise EngineError(
            "llama.cpp's releases for Linux need glibc, and this system has another C library",
            remedy=BUILD_IT,
        )
    if wanted == "metal":
        raise EngineError("Metal is for macOS", remedy="leave --backend out")
    if wanted != "auto":
        return (wanted,)
    suit = {"cuda": machine.nvidia, "rocm": bool(machine.rocm), "vulkan": machine.vulkan}
    return (*(backend for backend, suits in suit.items() if suits), "cpu")


def offers_of(release: Release, machine: Platform, backends: Sequence[str]) -> list[Offer]:
    """Return the archives of a release that fit, in the order of `backends`."""
    found = ((backend, _best(release, machine, backend)) for backend in backends)
    return [Offer(release.tag_name, backend, asset) for backend, asset in found if asset]


def newest_offers(
    releases: Sequence[Release], machine: Platform, backends: Sequence[str]
) -> list[Offer]:
    """Return for each backend the archive of the newest release that has one.

    A release appears before its assets are uploaded: it is passed over until they are there.
    """
    public = [one for one in releases if one.build and not one.draft and not one.prerelease]
    newest_first = sorted(public, key=lambda one: one.build, reverse=True)
    offers = []
    for backend in backends:
        for release in newest_first:
            if found := offers_of(release, machine, [backend]):
                offers += found
                break
    return offers


def _best(release: Release, machine: Platform, backend: str) -> ReleaseAsset | None:
    """Return the archive for a backend: for the newest toolkit that the machine has."""
    found = []
    for asset in release.assets:
        parts = _NAME.fullmatch(asset.name)
        if parts is None or asset.state != "uploaded" or asset.size <= 0:
            continue
        if parts["tag"] != release.tag_name or parts["system"] != _SYSTEMS[machine.system]:
            continue
        built_for = parts["backend"] or ("metal" if parts["system"] == "macos" else "cpu")
        version = tuple(map(int, (parts["version"] or "0").split(".")))
        if built_for != backend or parts["arch"] != _ARCHES[machine.processor]:
            continue
        if backend == "rocm" and machine.rocm and not machine.rocm.startswith(f"{version[0]}."):
            continue  # ROCm's libraries change their names with each major version
        found.append((version, parts["ending"] == "tar.gz", asset))
    return max(found, key=lambda one: one[:2])[2] if found else None


# --- what a failure means ------------------------------------------------------------------------


def too_old_for(said: str, libc: str) -> str:
    """Return why a binary did not start, from what it said; "" if the C library is not why."""
    versions = re.findall(r"`GLIBC_(\d+(?:\.\d+)*)' not found", said)
    if versions:
        newest = max(versions, key=lambda one: tuple(map(int, one.split("."))))
        return f"it needs glibc {newest} or newer, and this machine has {libc or 'another one'}"
    newer = re.findall(r"`((?:GLIBCXX|CXXABI)_[\d.]+)' not found", said)
    return f"it needs a newer libstdc++ ({max(newer)})" if newer else ""
