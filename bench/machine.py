"""What a table was measured on, in a line."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from llamaswap_py.llamacpp.binaries import Engine


def describe_machine(engine: Engine | str) -> str:
    """Return date, cores, load and versions of everybody who takes part."""
    if sys.platform != "linux":
        raise NotImplementedError
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    parts = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{len(os.sched_getaffinity(0))} cores{_processor()}",
        f"load average {load} before",
        f"llama.cpp {_build(engine)}",
        _version("go", "version", r"go(\d\S*)", "Go"),
        _version("nginx", "-v", r"nginx/(\S+)", "nginx"),
        f"Python {platform.python_version()}",
        f"Linux {platform.release()}",
    ]
    return ", ".join(parts)


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        return ""
    return f" ({found[1].strip()})" if found else ""


def _build(engine: Engine | str) -> str:
    if isinstance(engine, str):
        return "not here"
    return f"b{engine.build}" if engine.build else engine.version or "of an unknown build"


def _version(program: str, argument: str, pattern: str, name: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        return f"no {name}"
    said = subprocess.run([path, argument], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(pattern, said.stdout + said.stderr)
    return f"{name} {found[1]}" if found else name
