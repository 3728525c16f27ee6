"""The llama-servers of `make compat`: four builds of llama.cpp, the one that lswap pins among them.

`python -m tests.compat.engines` builds those that are not there. They lie in `test-engines`, beside
the folder `engines`, so that `engine: auto` does not find them; the pinned one is the usual engine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from llamaswap_py.llamacpp.install import find_script
from llamaswap_py.llamacpp.paths import MANIFEST, engines_folder


class Build(NamedTuple):
    """A build of llama.cpp, and the day on which its source distribution appeared."""

    ref: str
    date: str

    @property
    def folder(self) -> Path:
        """Where it is installed, or would be."""
        home = engines_folder()
        return (
            home if self.ref == pinned() else home.with_name("test-engines")
        ) / f"{self.ref}-cpu"

    @property
    def server(self) -> Path:
        return self.folder / "bin" / "llama-server"

    @property
    def is_there(self) -> bool:
        return (self.folder / MANIFEST).is_file() and os.access(self.server, os.X_OK)


BUILDS: Final = (
    Build("b9093", "2026-05-10"),
    Build("b9840", "2026-06-29"),
    Build("b10456", "2026-08-17"),
    Build("b11434", "2026-10-06"),
)
"""The first and the last build that the package index has, and two between them, 50 days apart."""


def pinned() -> str:
    """Return the release that the build script takes if it is not told another one."""
    found = re.search(r"^DEFAULT_REF=(\w+)$", find_script().read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def build(one: Build, *options: str) -> int:
    """Build it, which takes some minutes if it is not there; return the script's exit status."""
    command = ["bash", str(find_script()), "--backend", "cpu", "--ref", one.ref]
    command += ["--source", "pypi", "--prefix", str(one.folder), *options]
    os.environ.setdefault("PYTHON", sys.executable)
    return subprocess.run(command, check=False).returncode


def chosen(refs: list[str]) -> list[Build]:
    """Return the builds of these names, all of them for none; ends the program at another name."""
    if unknown := set(refs) - {one.ref for one in BUILDS}:
        sys.exit(f"there is no {', '.join(sorted(unknown))} in {__name__}.BUILDS")
    return [one for one in BUILDS if not refs or one.ref in refs]


def main() -> int:
    """Build what is missing, the newest first; go on after one that fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.engines", description=__doc__)
    parser.add_argument("refs", nargs="*", metavar="BUILD", help="b9093, … (default: all)")
    parser.add_argument("--jobs", default="", metavar="N", help="compilers at once")
    asked = parser.parse_args()
    options = ("--jobs", asked.jobs) if asked.jobs else ()
    failed = [one.ref for one in chosen(asked.refs)[::-1] if build(one, *options)]
    if failed:
        print(f"not built: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
