"""The lock files: what they may contain, and that they are what pyproject.toml asks for."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # resolved for these; the tests run on the first
SYSTEMS = ("linux", "darwin")

RUN = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["build"]
ASKED = {"run": RUN, "dev": RUN + PROJECT["dependency-groups"]["dev"]}


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Return each pinned requirement of a lock file, with its hashes."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    found = []
    for line in lines:
        said, *hashes = line.split("--hash=")
        found.append((Requirement(said.strip()), [each.strip() for each in hashes]))
    return found


def pins(name: str, python: str, system: str) -> dict[str, list[str]]:
    """Return the version of each package that is installed on one Python and system."""
    environment = {str(key): str(value) for key, value in default_environment().items()}
    environment |= {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
    }
    found: dict[str, list[str]] = {}
    for requirement, _ in locked(name):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", requirement
            found.setdefault(canonicalize_name(requirement.name), []).append(specifier.version)
    return found


def committed(*patterns: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("name", ASKED)
def test_every_line_is_a_version_with_hashes_and_names_no_place(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|--trusted|^-[a-z]| @ ", text)
    for requirement, hashes in locked(name):
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes), requirement


def test_no_lock_of_npm_names_a_place() -> None:
    """npm writes none with `omit-lockfile-registry-resolved=true`."""
    for path in committed("*package-lock.json", "*npm-shrinkwrap.json"):
        assert '"resolved"' not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_for_is_locked_once(name: str, system: str, python: str) -> None:
    found = pins(name, python, system)
    assert not {package for package, versions in found.items() if len(versions) != 1}
    for requirement in map(Requirement, ASKED[name]):
        (version,) = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run `make lock`"


def test_the_smaller_file_is_a_part_of_the_larger() -> None:
    whole = {(str(requirement), *hashes) for requirement, hashes in locked("dev")}
    assert {(str(requirement), *hashes) for requirement, hashes in locked("run")} <= whole


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_what_is_installed_is_what_is_locked(name: str) -> None:
    """An index is asked for its newest only by `make lock`, and by what tries other releases."""
    lines = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    commands = [
        command
        for line in lines
        if not line.lstrip("\t @").startswith("#")
        for command in line.split("&&")
        if re.search(r"(pip|PIP\)) (.* )?(install|wheel)", command) and "uv" not in command
    ]
    assert commands
    for command in commands:
        assert re.search(r"--require-hashes|\$\((LOCKED|SELF)\)|--no-deps", command), command
        if " wheel " in command:
            assert "--no-build-isolation" in command, command
