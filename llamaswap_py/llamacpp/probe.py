"""Finds out what a binary is: runs `--version` and `--help`, looks for marks, caches the result."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.backends import BACKENDS, CPU, SELECTABLE
from llamaswap_py.llamacpp.engine_output import read_output
from llamaswap_py.llamacpp.env_variables import clean_environment
from llamaswap_py.llamacpp.features import (
    CHILD_MODE_MARK,
    STREAM_MARK,
    EngineFeatures,
    Option,
    detect_features,
    parse_build,
    parse_options,
)
from llamaswap_py.llamacpp.paths import probes_folder
from llamaswap_py.storage.regular_files import open_regular, read_regular
from llamaswap_py.units import is_utf8, showable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["PROBE_TIMEOUT", "Engine", "probe_engine"]

PROBE_TIMEOUT: Final = 20.0
_SCHEMA: Final = 2  # of the cache files; raise it when Probe or its meaning changes
_HIDE_GPUS: Final = {one.variable: "-1" for one in SELECTABLE.values()}
# A statically linked backend shows in the binary, a dynamic one in the name of a library beside it.
# An engine for ROCm is made of the sources for CUDA and has their texts, so ROCm is tried first.
_IN_ORDER: Final = sorted(BACKENDS, key=lambda one: one.name != "rocm")


@dataclass(frozen=True, slots=True)
class Engine:
    """A llama-server that runs on this machine.

    `source` says how it was found; `build` is None when the binary does not tell.
    """

    path: Path
    build: int | None
    backend: str
    source: str
    features: EngineFeatures
    version: str = ""
    help_text: str = field(default="", repr=False)

    @property
    def options(self) -> Mapping[str, Option]:
        """Its option table, by name with dashes (also the short and negated names)."""
        return parse_options(self.help_text)

    @property
    def fit_params(self) -> Path | None:
        """The llama-fit-params of the same build, beside it; None when there is none."""
        path = self.path.with_name("llama-fit-params")
        return path if os.access(path, os.X_OK) else None

    @property
    def label(self) -> str:
        return f"b{self.build or '?'}-{self.backend}"


class _Probe(msgspec.Struct, frozen=True):
    """The result of a probe, cached as long as the file has the same time and size."""

    schema: int
    path: str
    mtime_ns: int
    size: int
    version: str
    help_text: str
    backend: str
    child_mode: bool
    stream_in_path: bool


def probe_engine(path: Path, source: str, *, cached: bool = True) -> Engine:
    """Find out what the llama-server at `path` is and can do.

    Raises EngineError when it is missing, not executable, built for another machine, hangs, or is
    something else; the message carries what the binary said.
    """
    if not is_utf8(str(path)):
        raise EngineError(f"{showable(str(path))} is not UTF-8", remedy="rename it")
    try:
        status = path.stat()
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}", remedy="check the path") from error
    if not path.is_file():
        raise EngineError(f"{path} is not a file", remedy="name the llama-server binary itself")
    if not os.access(path, os.X_OK):
        raise EngineError(f"{path} is not executable", remedy=f"chmod +x {path}")
    probe = _recall(path, status) if cached else None
    if probe is None:
        probe = _ask(path, status)
        if cached:
            _remember(probe)
    features = detect_features(
        parse_options(probe.help_text),
        child_mode=probe.child_mode,
        stream_in_path=probe.stream_in_path,
    )
    return Engine(
        path=path,
        build=parse_build(probe.version),
        backend=probe.backend,
        source=source,
        features=features,
        version=probe.version,
        help_text=probe.help_text,
    )


def _ask(path: Path, status: os.stat_result) -> _Probe:
    printed, help_text = _run(path, "--version", "--help")
    version = next((line for line in printed.splitlines() if line.startswith("version")), None)
    if version is None or "--port" not in parse_options(help_text):
        said = "\n".join(printed.splitlines()[:5]).strip() or "nothing"
        raise EngineError(
            f"{path} is not a llama-server (--version said: {said})",
            remedy="point to a llama-server binary, or run `lswap engine build`",
        )
    files = _binary_files(path)
    return _Probe(
        schema=_SCHEMA,
        path=str(path),
        mtime_ns=status.st_mtime_ns,
        size=status.st_size,
        version=version,
        help_text=help_text,
        backend=_backend(path, files),
        child_mode=any(_contains(file, CHILD_MODE_MARK) for file in files),
        stream_in_path=any(_contains(file, STREAM_MARK) for file in files),
    )


def _run(path: Path, *arguments: str) -> list[str]:
    """Run it with each argument, at once; return what each run printed.

    They share PROBE_TIMEOUT, because a binary that hangs delays a start.
    """
    end = time.monotonic() + PROBE_TIMEOUT
    with ExitStack() as stack:
        runs = [stack.enter_context(_started(path, argument)) for argument in arguments]
        return [
            _printed(run, f"{path} {argument}", end)
            for run, argument in zip(runs, arguments, strict=True)
        ]


@contextmanager
def _started(path: Path, argument: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run it in its own process group, and end the whole group afterwards."""
    env = clean_environment(os.environ) | _HIDE_GPUS
    try:
        run = subprocess.Popen(
            [str(path), argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise EngineError(
            f"{path} cannot be run ({error.strerror})",
            remedy="it is for another kind of machine, or damaged: run `lswap engine build`",
        ) from error
    with run:
        try:
            yield run
        finally:
            if run.returncode is None:
                with suppress(OSError):
                    os.killpg(run.pid, signal.SIGKILL)


def _printed(run: subprocess.Popen[bytes], what: str, end: float) -> str:
    try:
        out, _ = read_output(run, what, end)
    except TimeoutError as error:
        raise EngineError(
            f"{what} did not end within {PROBE_TIMEOUT:.0f} s",
            remedy="it is not a llama-server, or its GPU driver hangs: run it by hand",
        ) from error
    printed = out.decode(errors="replace")
    if run.returncode != 0:
        tail = " / ".join(printed.strip().splitlines()[-3:])
        raise EngineError(
            f"{what} failed with status {run.returncode}: {tail or 'no output'}",
            remedy="a missing library means it was built elsewhere: run `lswap engine build`",
        )
    return printed


def _binary_files(path: Path) -> list[Path]:
    """The binary itself and the llama.cpp libraries beside it."""
    real = path.resolve()
    pattern = re.compile(r"lib(llama|ggml|mtmd).*\.(so|dylib)(\.|$)")
    return [real, *sorted(p for p in real.parent.iterdir() if pattern.match(p.name))]


def _backend(path: Path, files: Iterable[Path]) -> str:
    for backend in _IN_ORDER:
        if any(file.name.startswith(backend.library) for file in files):
            return backend.name
        if _contains(path.resolve(), backend.mark):
            return backend.name
    return CPU


def _contains(path: Path, mark: bytes) -> bool:
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(mark) >= 0
    except (OSError, ValueError):  # unreadable, or empty
        return False


# --- the cache: a second start must not wait for a GPU library to load -------------------------


def _cache_file(path: Path) -> Path:
    return probes_folder() / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _recall(path: Path, status: os.stat_result) -> _Probe | None:
    try:
        probe = msgspec.json.decode(read_regular(_cache_file(path)), type=_Probe)
    except (OSError, msgspec.MsgspecError):
        return None
    known = (probe.schema, probe.path, probe.mtime_ns, probe.size)
    return probe if known == (_SCHEMA, str(path), status.st_mtime_ns, status.st_size) else None


def _remember(probe: _Probe) -> None:
    target = _cache_file(Path(probe.path))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(msgspec.json.encode(probe))
        unfinished.replace(target)
    except OSError:
        pass  # a cache that cannot be written only costs time
