"""Chooses the llama-server to run, in the documented order.

A path in the configuration → LSWAP_LLAMA_SERVER → our own installations (the one chosen by
`lswap engine use`, then the newest) → `llama-server` on PATH → common places.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.paths import MANIFEST, current_file, engines_folder, read_manifest
from llamaswap_py.llamacpp.probe import Engine, probe_engine
from llamaswap_py.storage.regular_files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "VARIABLE",
    "Broken",
    "Engine",
    "EngineSpec",
    "choose_engine",
    "chosen_path",
    "find_engines",
    "locate_engine",
    "named_engine",
]

VARIABLE: Final = "LSWAP_LLAMA_SERVER"
COMMON_PLACES: Final = (
    "/opt/homebrew/bin/llama-server",
    "/usr/local/bin/llama-server",
    "/home/linuxbrew/.linuxbrew/bin/llama-server",
    "~/llama.cpp/build/bin/llama-server",
    "~/src/llama.cpp/build/bin/llama-server",
)

EngineSpec = str | Mapping[str, object]
"""`engine:` of the configuration: "auto", a path, or {build, backend}, each optional."""


@dataclass(frozen=True, slots=True)
class Candidate:
    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A candidate that does not work, and why."""

    path: Path
    source: str
    error: EngineError


def locate_engine(spec: EngineSpec = "auto") -> Engine:
    """Return the engine that `spec` means.

    Raises EngineError when a named one does not work, or when none of the candidates works; the
    message lists every place that was searched.
    """
    if isinstance(spec, str) and spec != "auto":
        return probe_engine(Path(spec).expanduser().absolute(), "config")
    wanted = _wanted(spec)
    looked: list[str] = []
    for candidate in _candidates():
        try:
            engine = probe_engine(candidate.path, candidate.source)
        except EngineError as error:
            if candidate.source == VARIABLE:
                raise EngineError(f"{VARIABLE}: {error.message}", remedy=error.remedy) from error
            looked.append(error.message)
            continue
        if wanted.items() <= {"build": engine.build, "backend": engine.backend}.items():
            return engine
        looked.append(f"{engine.path} is {engine.label}")
    what = " ".join(f"{key} {value}" for key, value in wanted.items())
    raise EngineError(
        f"no llama-server found{' with ' + what if what else ''}; looked at: "
        + "; ".join([*looked, *_empty_places()]),
        remedy=_remedy(wanted),
    )


def _remedy(wanted: Mapping[str, object]) -> str:
    """Return the remedy for a missing engine, as commands ready to paste."""
    options = f" --ref b{wanted['build']}" if "build" in wanted else ""
    options += f" --backend {wanted['backend']}" if "backend" in wanted else ""
    ways = f"`lswap engine build{options}` (compiles)"
    if wanted.get("backend") != "cuda":  # of which there is no release for Linux
        ways = f"`lswap engine install{options}` (downloads a release) or {ways}"
    return f"run {ways}, or set `engine:` to the path of a llama-server"


def find_engines(spec: EngineSpec = "auto") -> list[Engine | Broken]:
    """Probe every candidate, in order of preference; the first Engine is what `auto` takes."""
    candidates = list(_candidates())
    if isinstance(spec, str) and spec != "auto":
        candidates.insert(0, Candidate(Path(spec).expanduser().absolute(), "config"))
    found: list[Engine | Broken] = []
    for candidate in candidates:
        try:
            found.append(probe_engine(candidate.path, candidate.source))
        except EngineError as error:
            found.append(Broken(candidate.path, candidate.source, error))
    return found


def named_engine(name: str, source: str = "named") -> Engine:
    """Return the engine of this name: that of an installation, or the path of any llama-server.

    Raises EngineError when the engine does not exist or does not work.
    """
    installed = {folder.name: path for folder, path in _installed()}
    if name not in installed and not Path(name).expanduser().exists():
        known = ", ".join(sorted(installed)) or "none"
        raise EngineError(
            f"no engine named {name} (installed: {known})", remedy="see `lswap engine list`"
        )
    return probe_engine(installed.get(name) or Path(name).expanduser().absolute(), source)


def choose_engine(name: str) -> Engine:
    """Make `auto` prefer an engine: the name of an installation, or the path of any llama-server.

    Raises EngineError when the engine does not exist or does not work.
    """
    engine = named_engine(name, "chosen")
    target = current_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".current.{os.getpid()}")
    unfinished.write_text(f"{engine.path}\n")
    unfinished.replace(target)
    return engine


def chosen_path() -> Path | None:
    """Return what `lswap engine use` recorded, whether it still exists or not."""
    try:
        text = read_regular(current_file()).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    # A damaged file may hold anything; no path has a zero byte.
    return Path(text) if os.path.isabs(text) and "\0" not in text else None


def _wanted(spec: EngineSpec) -> dict[str, object]:
    if isinstance(spec, str):
        return {}
    wanted: dict[str, object] = {}
    if (build := spec.get("build")) is not None:
        digits = re.fullmatch(r"b?(\d+)", str(build))
        if not digits:
            raise EngineError(
                f"engine build {build!r} is not a build", remedy="write it like b11434"
            )
        wanted["build"] = int(digits[1])
    if (backend := spec.get("backend")) is not None:
        wanted["backend"] = str(backend)
    return wanted


def _candidates() -> Iterator[Candidate]:
    seen: set[Path] = set()
    for candidate in _all_candidates():
        if (real := candidate.path.resolve()) not in seen:
            seen.add(real)
            yield candidate


def _all_candidates() -> Iterator[Candidate]:
    if named := os.environ.get(VARIABLE):
        yield Candidate(Path(named).expanduser().absolute(), VARIABLE)
    if chosen := chosen_path():
        yield Candidate(chosen, "chosen")
    for folder, path in _installed():
        yield Candidate(path, f"installed {folder.name}")
    if on_path := shutil.which("llama-server"):
        yield Candidate(Path(on_path).absolute(), "PATH")
    for place in COMMON_PLACES:
        path = Path(place).expanduser()
        if path.exists():
            yield Candidate(path, "common place")


def _installed() -> list[tuple[Path, Path]]:
    """List (folder, llama-server) of our installations: newest build first, GPU before cpu."""
    found: list[tuple[int, bool, Path, Path]] = []
    try:
        folders = sorted(engines_folder().iterdir())
    except OSError:
        return []
    for folder in folders:
        if folder.name.startswith(".") or not (folder / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(folder)
        except EngineError:
            continue
        server = folder / manifest.server
        found.append((manifest.build, manifest.backend != "cpu", folder, server))
    found.sort(key=lambda entry: entry[:2], reverse=True)
    return [(folder, server) for _, _, folder, server in found]


def _empty_places() -> list[str]:
    places = [f"{VARIABLE} is not set"] if VARIABLE not in os.environ else []
    if not _installed():
        places.append(f"{engines_folder()} (nothing installed)")
    if not shutil.which("llama-server"):
        places.append("PATH (no llama-server)")
    return [*places, *(place for place in COMMON_PLACES if not Path(place).expanduser().exists())]
