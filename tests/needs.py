"""What the tests need from the machine beside Python: looked for before they begin.

`python -m tests.needs` lists what is missing, which tests are then skipped, and how to get it. The
tests themselves ask the machine again where they need a part, and skip with the same words.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Final

CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, slots=True)
class Need:
    """A part of the machine, by the programs any one of which will do."""

    name: str
    programs: tuple[str, ...]
    get: str
    skipped: str

    def __str__(self) -> str:
        return f"{self.name} ({self.get})"

    def find(self) -> str | None:
        """Return the path of the first program that is there."""
        found = (shutil.which(program) for program in self.programs)
        return next(filter(None, found), None)

    def require(self) -> str:
        """Return the path of the program; skips the test that asks where there is none."""
        import pytest

        return self.find() or pytest.skip(f"missing: {self}")


_ENGINE: Final = "all tests with a real llama-server, unless one is found"
_BUILD: Final = "the tests of the build script"
BUILD_TOOLS: Final = (
    Need("a C++ compiler", ("c++", "g++", "clang++"), "apt-get install g++", _ENGINE),
    Need("cmake", ("cmake",), "apt-get install cmake", _BUILD),
    Need("ninja", ("ninja",), "apt-get install ninja-build", _BUILD),
    Need("git", ("git",), "apt-get install git", _BUILD),
)
GLSLC: Final = Need(
    "glslc",
    ("glslc",),
    "apt-get install glslc libvulkan-dev",
    "the tests of Vulkan and RPC devices, unless their llama-server is built",
)
_BROWSER_TESTS: Final = "the tests of the web UI in a browser"
BROWSER: Final = Need("chromium", CHROMIUM, "apt-get install chromium", _BROWSER_TESTS)
NPM: Final = Need("npm", ("npm",), "apt-get install npm", "the tests of the web UI, unless built")
SYSTEMD: Final = Need(
    "systemd-analyze",
    ("systemd-analyze",),
    "apt-get install systemd",
    "the checks of the systemd units",
)
C_COMPILER: Final = Need(
    "a C compiler",
    ("cc", "gcc", "clang"),
    "apt-get install gcc",
    "tests that compile a stand-in: NVIDIA's driver, a clock that jumps, a load generator",
)
CURL: Final = Need("curl", ("curl",), "apt-get install curl", "the test of curl as a client")
OPENSSL: Final = Need(
    "openssl", ("openssl",), "apt-get install openssl", "the test of a release over TLS"
)
ALL: Final = (*BUILD_TOOLS, GLSLC, NPM, BROWSER, SYSTEMD, C_COMPILER, CURL, OPENSSL)


def report(needs: tuple[Need, ...] = ALL) -> list[str]:
    """Return a line for each part that is missing, with what is skipped without it."""
    return [
        f"  {need.skipped}: {need.name} is missing ({need.get})"
        for need in needs
        if need.find() is None
    ]


def main() -> None:
    lines = report()
    if not lines:
        return
    print("these tests will be skipped:", *lines, sep="\n")
    if os.environ.get("CI"):
        print("CI is set, so a test that is skipped counts as a failure")


if __name__ == "__main__":
    main()
