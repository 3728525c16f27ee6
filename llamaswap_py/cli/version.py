"""Versions: of lswap, its commit, and the llama-server that it uses."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py import __version__

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.binaries import Engine

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_PATIENCE: Final = 5.0


@cache
def commit() -> str | None:
    """Return the commit that this lswap was built from; None if it is unknown.

    A wheel has it in a file, which `hatch_build.py` writes. A checkout asks git.
    """
    return _written(_PACKAGE / "commit.txt") or _asked(_PACKAGE.parent)


def _written(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _asked(root: Path) -> str | None:
    if not (root / ".git").exists():  # else git would name the commit of a repository around it
        return None
    import subprocess

    command = ["git", "-C", str(root), "rev-parse", "--short=7", "HEAD"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def lswap_text() -> str:
    """Return lswap and its version, with the commit where it is known."""
    known = commit()
    return f"lswap {__version__}" + (f" (commit {known})" if known else "")


def print_version(*, as_json: bool = False) -> None:
    """Print lswap's version and commit, and the llama-server that `engine: auto` takes."""
    engine = _engine()
    if as_json:
        import msgspec

        print(msgspec.json.encode(_record(engine)).decode())
        return
    using = f"llama-server {engine.label}" if engine is not None else "no llama-server"
    print(f"lswap {__version__} (commit {commit() or 'unknown'}, {using})")


def _record(engine: Engine | None) -> dict[str, object]:
    found = None
    if engine is not None:
        found = {"path": str(engine.path), "build": engine.build, "backend": engine.backend}
    return {"version": __version__, "commit": commit(), "engine": found}


def _engine() -> Engine | None:
    from llamaswap_py.errors import EngineError
    from llamaswap_py.llamacpp.binaries import locate_engine

    try:
        return locate_engine()
    except EngineError:
        return None
