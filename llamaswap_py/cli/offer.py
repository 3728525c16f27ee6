"""Offers to install a llama-server, where a person starts lswap on a machine that has none."""

from __future__ import annotations

import os
import sys

import typer

from llamaswap_py.llamacpp.binaries import VARIABLE, Broken, find_engines

__all__ = ["offer_engine"]


def offer_engine() -> bool:
    """Ask whether to install llama.cpp's release, and do so; return whether there is one now.

    It asks only at a terminal, and only if no engine works and none was named by the environment.
    Raises EngineError when the release cannot be installed.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or os.environ.get(VARIABLE):
        return False
    if any(not isinstance(one, Broken) for one in find_engines()):
        return False
    question = "There is no llama-server on this machine. Download a release of llama.cpp?"
    if not typer.confirm(question, default=True, err=True):
        return False
    from llamaswap_py.cli.download_progress import progress, say
    from llamaswap_py.llamacpp.releases import install_release

    with progress() as on_progress:
        engine = install_release(say=say, on_progress=on_progress)
    say(f"installed {engine.label} ({engine.path})")
    return True
