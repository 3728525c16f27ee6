"""Examines the machine (tools, GPUs, engines, limits), and names a remedy for what is missing."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.backends import BACKENDS
from llamaswap_py.llamacpp.binaries import Broken, EngineSpec, find_engines
from llamaswap_py.llamacpp.device_list import OPTION
from llamaswap_py.llamacpp.device_query import query_devices
from llamaswap_py.llamacpp.install import check_build
from llamaswap_py.llamacpp.paths import engines_folder, probes_folder
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.llamacpp.probe import Engine

__all__ = ["Check", "CheckState", "DoctorReport", "examine"]

_MARKS: Final = {
    "child_mode": "no child mode: no load progress, and stopping is by signal",
    "unix_socket": "no unix sockets: loopback TCP ports are used",
    "log_jsonl": "no JSON logs: plain lines are parsed",
    "metrics": "no --metrics: the state of slots is unknown",
    "fit": "no --fit: a preset cannot ask to be shrunk",
}


class CheckState(StrEnum):
    """The result of a check: present, absent (which may be fine), or a problem."""

    OK = "ok"
    ABSENT = "absent"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked; `remedy` says what to do about it, "" if nothing."""

    group: str
    name: str
    state: CheckState
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything that was found; `usable` when there is an engine that works."""

    checks: tuple[Check, ...]
    usable: bool


def examine(spec: EngineSpec = "auto") -> DoctorReport:
    """Examine the machine. A thing that is missing or broken never raises an error."""
    found = find_engines(spec)
    engines = [entry for entry in found if not isinstance(entry, Broken)]
    devices = [*_nvidia(), *_amd(), *_vulkan()]
    checks = [
        *_engines(found),
        *_unused_gpus(engines, devices),
        *_tools(),
        *devices,
        *_limits(),
        *_folders(),
    ]
    return DoctorReport(tuple(checks), usable=bool(engines))


# --- engines -----------------------------------------------------------------------------------


def _engines(found: list[Engine | Broken]) -> Iterator[Check]:
    for entry in found:
        if isinstance(entry, Broken):
            yield Check(
                "engines",
                str(entry.path),
                CheckState.PROBLEM,
                entry.error.message,
                entry.error.remedy,
            )
        else:
            yield _engine(entry)
            yield from _listed(entry)
    if all(isinstance(entry, Broken) for entry in found):
        yield Check(
            "engines",
            "llama-server",
            CheckState.PROBLEM,
            "none works",
            "run `lswap engine install` or `lswap engine build`",
        )


def _engine(engine: Engine) -> Check:
    lacks = [text for mark, text in _MARKS.items() if not getattr(engine.features, mark)]
    if engine.fit_params is None:
        lacks.append("no llama-fit-params beside it: footprints are not estimated exactly")
    return Check(
        "engines",
        str(engine.path),
        CheckState.OK,
        "; ".join([f"{engine.label} ({engine.source})", *lacks]),
        "`lswap engine build` makes a newer one" if lacks else "",
    )


def _listed(engine: Engine) -> Iterator[Check]:
    """Say which devices an engine lists: they are lswap's devices."""
    name = f"{engine.label} devices"
    if OPTION not in engine.help_text:
        return
    try:
        devices = query_devices(engine.path, os.environ)
    except EngineError as error:
        yield Check("engines", name, CheckState.PROBLEM, error.message, error.remedy)
        return
    sizes = (format_size(one.total) if one.total else "size not reported" for one in devices)
    said = [
        f"{one.name}: {one.description} ({size})" for one, size in zip(devices, sizes, strict=True)
    ]
    yield Check("engines", name, CheckState.OK, "; ".join(said) or "none but the CPU")


def _unused_gpus(engines: list[Engine], devices: list[Check]) -> Iterator[Check]:
    """Name every kind of GPU that no engine can use."""
    backends = {engine.backend for engine in engines}
    for kind in (one for one in BACKENDS if one.vendor):
        group = kind.vendor
        gpus = [check.name for check in devices if check.group == group and "free" in check.detail]
        if gpus and not backends & {kind.name, "vulkan"}:
            remedy = f"`lswap engine build --backend {kind.name}`"
            yield Check(
                "engines", kind.name, CheckState.ABSENT, f"no engine uses {', '.join(gpus)}", remedy
            )


# --- what a build needs ------------------------------------------------------------------------


def _tools() -> Iterator[Check]:
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "c++")
    for name, package in (
        (compiler, "apt-get install build-essential"),
        ("git", "apt-get install git (without it sources come from PyPI)"),
        ("cmake", "apt-get install cmake (without it a build takes it from PyPI)"),
        ("ninja", "apt-get install ninja-build (without it a build takes it from PyPI)"),
    ):
        yield _tool("build tools", name, "--version", package)


def _tool(group: str, name: str, argument: str, remedy: str, place: str | None = None) -> Check:
    """Check for a program on PATH, or at `place`; its version is the first line with a digit."""
    path = shutil.which(name) or (place if place and os.access(place, os.X_OK) else None)
    if path is None:
        return Check(group, name, CheckState.ABSENT, "not found", remedy)
    try:
        done = subprocess.run(
            [path, argument], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(group, name, CheckState.PROBLEM, f"{path}: {error}", remedy)
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d\.\d|^\d+$", line)]
    return Check(
        group, name, CheckState.OK, f"{lines[0].strip() if lines else ''} ({path})".strip()
    )


# --- GPUs --------------------------------------------------------------------------------------


def _nvidia() -> Iterator[Check]:
    present, checks = _nvidia_driver()
    yield from checks
    yield _tool(
        "NVIDIA",
        "nvcc",
        "--version",
        f"{'' if present else 'with an NVIDIA card: '}install the CUDA toolkit to build for it",
        "/usr/local/cuda/bin/nvcc",
    )


def _nvidia_driver() -> tuple[bool, list[Check]]:
    try:
        import pynvml  # noqa: PLC0415 - optional at run time

        pynvml.nvmlInit()
    except Exception as error:  # the library raises many types, and OSError without a driver
        remedy = "with an NVIDIA card: install its driver (apt-get install nvidia-driver)"
        return False, [Check("NVIDIA", "driver", CheckState.ABSENT, str(error), remedy)]
    try:
        version = _text(pynvml.nvmlSystemGetDriverVersion())
        checks = [Check("NVIDIA", "driver", CheckState.OK, version)]
        checks += [_nvidia_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        return True, checks
    except pynvml.NVMLError as error:
        return True, [Check("NVIDIA", "driver", CheckState.PROBLEM, str(error), "run nvidia-smi")]
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(pynvml: Any, index: int) -> Check:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    detail = f"{name}, {format_size(memory.free)} of {format_size(memory.total)} free"
    return Check("NVIDIA", f"CUDA{index}", CheckState.OK, detail)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _amd() -> Iterator[Check]:
    cards = [card for card in sorted(Path("/sys/class/drm").glob("card*")) if _is_amd(card)]
    for number, card in enumerate(cards):
        total, used = (_number(card / f"device/mem_info_vram_{word}") for word in ("total", "used"))
        detail = f"{card.name}, {format_size(total - used)} of {format_size(total)} free"
        yield Check("AMD", f"ROCm{number}", CheckState.OK, detail)
    if not cards:
        remedy = "with an AMD card: load the amdgpu driver"
        yield Check("AMD", "GPU", CheckState.ABSENT, "no amdgpu card in /sys/class/drm", remedy)
    remedy = f"{'' if cards else 'with an AMD card: '}install ROCm to build for it"
    yield _tool("AMD", "hipcc", "--version", remedy, "/opt/rocm/bin/hipcc")


def _is_amd(card: Path) -> bool:
    return (card / "device/mem_info_vram_total").is_file()


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _vulkan() -> Iterator[Check]:
    from ctypes.util import find_library  # noqa: PLC0415 - runs the linker; only here

    library = find_library("vulkan")
    yield Check(
        "Vulkan",
        "loader",
        CheckState.OK if library else CheckState.ABSENT,
        library or "libvulkan not found",
        "" if library else "apt-get install libvulkan1 to run a Vulkan engine",
    )
    yield _tool("Vulkan", "glslc", "--version", "apt-get install glslc libvulkan-dev to build one")
    yield _vulkan_build()


def _vulkan_build() -> Check:
    """Say what the build script would say: headers that are too old fail in the compiler."""
    try:
        return Check("Vulkan", "build", CheckState.OK, check_build("vulkan"))
    except EngineError as error:
        return Check("Vulkan", "build", CheckState.ABSENT, error.message, error.remedy)


# --- limits and folders ------------------------------------------------------------------------


def _limits() -> Iterator[Check]:
    files, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = ceiling == resource.RLIM_INFINITY or ceiling >= 4096
    yield Check(
        "limits",
        "open files",
        CheckState.OK if enough else CheckState.PROBLEM,
        f"{_limit(files)} (at most {_limit(ceiling)})",
        "" if enough else "raise the hard limit (ulimit -Hn 4096): each open request uses two",
    )
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = locked == resource.RLIM_INFINITY
    detail = "unlimited" if unlimited else f"{locked // 1024} KiB"
    remedy = "" if unlimited else "ulimit -l unlimited, only for presets that lock their memory"
    yield Check("limits", "locked memory", CheckState.OK, detail, remedy)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _folders() -> Iterator[Check]:
    for name, folder in (("engines", engines_folder()), ("cache", probes_folder())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        writable = os.access(existing, os.W_OK | os.X_OK)
        yield Check(
            "folders",
            name,
            CheckState.OK if writable else CheckState.PROBLEM,
            str(folder) if writable else f"{existing} is not writable",
            "" if writable else "set XDG_DATA_HOME and XDG_CACHE_HOME to folders of yours",
        )
