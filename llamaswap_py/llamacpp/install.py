"""Installs engines: by scripts/build_llama_cpp.sh, or by unpacking a release archive.

The script's progress goes to lswap's own output. The SHA-256 of an archive is checked first.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.paths import EngineManifest, digest_file, engines_folder, write_manifest
from llamaswap_py.llamacpp.probe import Engine, probe_engine
from llamaswap_py.redaction import without_user
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


__all__ = ["build_engine", "check_build", "find_script", "install_archive"]

SCRIPT: Final = "build_llama_cpp.sh"


def find_script() -> Path:
    """Return the build script: beside this module in a wheel, in scripts/ in a checkout.

    Raises EngineError when neither is there.
    """
    here = Path(__file__).resolve()
    for path in (here.with_name(SCRIPT), here.parents[2] / "scripts" / SCRIPT):
        if path.is_file():
            return path
    raise EngineError(f"{SCRIPT} is missing from this installation", remedy="install lswap again")


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


_CHUNK: Final = 1 << 20
_SPARE: Final = 256 << 20
"""Bytes of the disk that stay free."""
_TIMEOUT: Final = 20.0  # seconds without a byte, and to connect


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
    wanted = sha256.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise EngineError("--sha256 needs 64 hexadecimal digits", remedy="see the release page")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise EngineError(
            f"{name!r} is not a good name for an engine", remedy="letters, digits, - _ ."
        )
    with _scratch_folder() as scratch:
        if re.match(r"https?://", location):
            archive = scratch / "archive"
            _download(location, archive, on_progress)
        else:
            archive = Path(location).expanduser()
            if not archive.is_file():
                raise EngineError(f"there is no file {archive}", remedy="check the path")
        if (actual := digest_file(archive)) != wanted:
            raise EngineError(
                f"{location} has SHA-256 {actual}, not {wanted}",
                remedy="it is another file than you think: do not use it",
            )
        tree = scratch / "tree"
        _unpack(archive, tree)
        return _install_tree(tree, without_user(location), name)


def _install_tree(tree: Path, source: str, name: str | None) -> Engine:
    server = _find_server(tree)
    server.chmod(server.stat().st_mode | 0o755)
    engine = probe_engine(server, "archive", cached=False)
    relative = server.relative_to(tree)
    write_manifest(
        tree,
        EngineManifest(
            build=engine.build or 0,
            backend=engine.backend,
            source=source,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            version=engine.version,
            sha256=digest_file(server),
            features=tuple(f for f in engine.features.__slots__ if getattr(engine.features, f)),
            server=str(relative),
        ),
    )
    target = engines_folder() / (name or f"b{engine.build or 0}-{engine.backend}")
    if target.exists():
        target.rename(tree.with_name("replaced"))  # removed together with the scratch folder
    tree.rename(target)
    return probe_engine(target / relative, f"installed {target.name}")


def _find_server(tree: Path) -> Path:
    found = sorted(p for p in tree.rglob("llama-server") if p.is_file() and not p.is_symlink())
    if not found:
        raise EngineError(
            "the archive holds no llama-server", remedy="choose a binary release for this system"
        )
    return found[0]


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Make a scratch folder beside the installations, so that a rename finishes the work."""
    parent = engines_folder()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished.", dir=parent) as folder:
        yield Path(folder)


def _download(url: str, target: Path, on_progress: Callable[[int, int | None], None]) -> None:
    # This import takes a tenth of a second, so only a download does it.
    import httpx  # noqa: PLC0415

    from llamaswap_py.hub.redirects import Guard, OutgoingError  # noqa: PLC0415

    most = max(shutil.disk_usage(target.parent).free - _SPARE, 0)
    try:
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
            Guard(url).watch(client)
            with client.stream("GET", url) as answer, target.open("wb") as file:
                answer.raise_for_status()
                length = answer.headers.get("content-length", "")
                total = int(length) if length.isdigit() and len(length) < 20 else None
                for chunk in answer.iter_raw(_CHUNK):
                    if max(file.tell() + len(chunk), total or 0) > most:
                        raise EngineError(
                            f"{url} does not fit on the disk: {target.parent} has room for "
                            f"{format_size(most)}",
                            remedy="make room, or name another address",
                        )
                    file.write(chunk)
                    on_progress(file.tell(), total)
    except OutgoingError as error:
        raise EngineError(error.message, remedy=error.remedy) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{url} cannot be downloaded ({error})",
            remedy="check the address, or download it yourself and name the file",
        ) from error


# --- archives ----------------------------------------------------------------------------------


def _unpack(archive: Path, target: Path) -> None:
    target.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, target)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise EngineError(
            f"{archive.name} cannot be unpacked ({error})",
            remedy="it must be a .tar.gz or .zip whose members stay inside their folder",
        ) from error


def _unzip(archive: Path, target: Path) -> None:
    """Extract with modes and symbolic links, which ZipFile.extractall drops."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            name = PurePosixPath(member.filename)
            mode = member.external_attr >> 16
            if name.is_absolute() or ".." in name.parts:
                raise zipfile.BadZipFile(f"{member.filename} reaches outside")
            path = target / name
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(mode):
                _link(path, file.read(member).decode(errors="replace"))
                continue
            with file.open(member) as content, path.open("xb") as copy:
                shutil.copyfileobj(content, copy)
            path.chmod(0o755 if mode & 0o100 else 0o644)


def _link(path: Path, destination: str) -> None:
    # Libraries link to files beside them; a release does not need any other link.
    if os.sep in destination or destination in ("", ".", ".."):
        raise zipfile.BadZipFile(f"{path.name} links to {destination}")
    path.symlink_to(destination)
