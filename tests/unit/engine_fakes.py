"""Executables that pretend to be llama-server as far as a probe can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.llamacpp.paths import EngineManifest, engines_folder, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

HELP = """\
--host HOST                             address, or a socket ending in .sock
--port PORT                             port to listen
--metrics                               enable metrics
"""


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def server_script(build: int, marks: str = "") -> str:
    """A script that counts its runs in a file beside it; `marks` end up in the binary."""
    return f"""# {marks}
echo run >> "$0.runs"
case $1 in
--version) echo "version: {build} (abcdef12)" ;;
--help) cat <<'HELP'
{HELP}HELP
;;
esac"""


def write_server(path: Path, build: int = 7000, marks: str = "") -> Path:
    return write_script(path, server_script(build, marks))


def count_runs(server: Path) -> int:
    runs = server.with_name(f"{server.name}.runs")
    return len(runs.read_text().splitlines()) if runs.exists() else 0


def install_server(build: int, backend: str = "cpu") -> Path:
    """Install a fake the way the build script does."""
    folder = engines_folder() / f"b{build}-{backend}"
    server = write_server(folder / "bin" / "llama-server", build, _MARKS.get(backend, ""))
    write_manifest(folder, EngineManifest(build=build, backend=backend))
    return server


_MARKS = {"cuda": "ggml_cuda_init", "rocm": "ggml_cuda_init libamdhip64", "vulkan": "ggml_vulkan: "}
