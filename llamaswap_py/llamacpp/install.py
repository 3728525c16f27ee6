"""Installs engines: by scripts/build_llama_cpp.sh, or by unpacking a release archive.

The script's progress goes to lswap's own output. The SHA-256 of an archive is checked first.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.archives import unpack
from llamaswap_py.llamacpp.paths import EngineManifest, digest_file, engines_folder, write_manifest
from llamaswap_py.llamacpp.probe import Engine, probe_engine
from llamaswap_py.redaction import without_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


__all__ = [
    "build_engine",
    "check_build",
    "check_digest",
    "check_name",
    "find_script",
    "install_archive",
    "pinned_ref",
    "place_engine",
    "read_digest",
    "scratch_folder",
    "unpack_server",
]

SCRIPT: Final = "build_llama_cpp.sh"
_SCRATCH: Final = ".unfinished.install-"
_FRESH: Final = 60.0


def find_script() -> Path:
    """Return the build script: beside this module in a wheel, in scripts/ in a checkout.

    Raises EngineError when neither is there.
    """
    here = Path(__file__).resolve()
    for path in (here.with_name(SCRIPT), here.parents[2] / "scripts" / SCRIPT):
        if path.is_file():
            return path
    raise EngineError(f"{SCRIPT} is missing from this installation", remedy="install lswap again")


def pinned_ref() -> str:
    """Return the release of llama.cpp that lswap is tested with, as the build script says it."""
    path = find_script()
    found = re.search(r"^DEFAULT_REF=(b\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise EngineError(f"{path} has no line DEFAULT_REF=bNNNN", remedy="install lswap again")
    return found[1]


def build_engine(options: Sequence[str]) -> None:
    """Build and install an engine with the script's own options (`--backend cpu …`).

    Raises EngineError when it fails; the script has already printed why.
    """
    command = ["bash", str(find_script()), *options]
    try:
        status = subprocess.run(
            command, env=os.environ | {"PYTHON": sys.executable}, check=False
        ).returncode
    except FileNotFoundError as error:
        raise EngineError("building needs bash", remedy="apt-get install bash") from error
    if status != 0:
        raise EngineError(
            f"the engine was not built (status {status})", remedy="see the messages above"
        )


def check_build(backend: str) -> str:
    """Ask the script whether this machine can build for `backend`; return its answer.

    Raises EngineError that names what is missing.
    """
    command = ["bash", str(find_script()), "--backend", backend, "--check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError as error:
        raise EngineError("building needs bash", remedy="apt-get install bash") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{SCRIPT} --check: {error}", remedy="run it by hand") from error
    if done.returncode == 0:
        return done.stdout.strip()
    said = re.search(r"^error: (.*)\n  what to do: (.*)$", done.stderr, re.MULTILINE)
    if said is None:
        raise EngineError(
            f"{SCRIPT} --check failed ({done.stderr.strip()})", remedy="run it by hand"
        )
    raise EngineError(said[1], remedy=said[2])


def install_archive(
    location: str,
    sha256: str,
    *,
    name: str | None = None,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Engine:
    """Install the llama-server inside a .tar.gz or .zip: a file, or an http(s) URL.

    The archive keeps its layout, so that libraries stay where the binary looks for them. It is
    installed as `name`, by default `b<build>-<backend>`. `on_progress` gets bytes done and in all.

    Raises EngineError, and installs nothing, when the archive cannot be read, has another SHA-256,
    reaches outside its folder, or does not hold a llama-server that runs here.
    """
    wanted = read_digest(sha256)
    check_name(name)
    with scratch_folder() as scratch:
        if re.match(r"https?://", location):
            # This import takes a tenth of a second, so only a download does it.
            from llamaswap_py.llamacpp.archive_download import download  # noqa: PLC0415

            archive = scratch / "archive"
            download(location, archive, on_progress)
        else:
            archive = Path(location).expanduser()
            if not archive.is_file():
                raise EngineError(f"there is no file {archive}", remedy="check the path")
        check_digest(archive, location, wanted)
        server = unpack_server(archive, scratch / "tree")
        engine = probe_engine(server, "archive", cached=False)
        return place_engine(scratch / "tree", engine, without_user(location), name)


# --- the steps, which releases.py takes too ------------------------------------------------------


def read_digest(sha256: str) -> str:
    """Return the hexadecimal digits of `sha256:…`, in lower case; raises EngineError."""
    digits = sha256.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise EngineError("--sha256 needs 64 hexadecimal digits", remedy="see the release page")
    return digits


def check_name(name: str | None) -> None:
    """Raise EngineError for a name that cannot be that of an installation."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise EngineError(
            f"{name!r} is not a good name for an engine", remedy="letters, digits, - _ ."
        )


def check_digest(archive: Path, location: str, wanted: str) -> None:
    """Raise EngineError if the archive, which came from `location`, has another SHA-256."""
    if (actual := digest_file(archive)) != wanted:
        raise EngineError(
            f"{location} has SHA-256 {actual}, not {wanted}",
            remedy="the file is not the one that you expect: do not use it",
        )


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a scratch folder beside the installations, so that a rename finishes the work.

    It is locked while it is used. What a killed lswap left behind has no lock, and is removed.
    Raises EngineError where the disk is full, or does not let lswap write.
    """
    parent = engines_folder()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{_SCRATCH}*"):
            _remove_left(left)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as name, _locked(Path(name)):
            yield Path(name)
    except OSError as error:
        raise EngineError(
            f"nothing was installed in {parent} ({error.strerror or error})",
            remedy="make room there or let lswap write, or name another place by XDG_DATA_HOME",
        ) from error


def _remove_left(scratch: Path) -> None:
    with suppress(OSError):
        if time.time() - scratch.stat().st_mtime > _FRESH:  # else its owner may be about to lock
            with _locked(scratch):
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def unpack_server(archive: Path, tree: Path) -> Path:
    """Unpack an archive into `tree`, and return the llama-server in it; raises EngineError."""
    unpack(archive, tree)
    found = sorted(p for p in tree.rglob("llama-server") if p.is_file() and not p.is_symlink())
    if not found:
        raise EngineError(
            "the archive holds no llama-server", remedy="choose a binary release for this system"
        )
    server = found[0]
    server.chmod(server.stat().st_mode | 0o755)
    return server


def place_engine(
    tree: Path, engine: Engine, source: str, name: str | None = None, ref: str = ""
) -> Engine:
    """Make the unpacked `tree`, in which `engine` was probed, an installation of ours."""
    relative = engine.path.relative_to(tree)
    write_manifest(
        tree,
        EngineManifest(
            build=engine.build or 0,
            ref=ref,
            backend=engine.backend,
            source=source,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            version=engine.version,
            sha256=digest_file(engine.path),
            features=tuple(f for f in engine.features.__slots__ if getattr(engine.features, f)),
            server=str(relative),
        ),
    )
    target = engines_folder() / (name or f"b{engine.build or 0}-{engine.backend}")
    if os.path.lexists(target):  # a link that leads nowhere, too
        target.rename(tree.with_name("replaced"))  # removed together with the scratch folder
    tree.rename(target)
    return probe_engine(target / relative, f"installed {target.name}")
