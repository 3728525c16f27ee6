""".github: workflows call what is here, and templates ask for what helps."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaswap_py import __version__

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {
    name
    for line in re.findall(r"^([\w .-]+):(?!=)", MAKEFILE, re.MULTILINE)
    for name in line.split()
    if not name.startswith(".")
}


def read(path: Path) -> dict[str, Any]:
    """Return a file of YAML; YAML 1.1 takes its key `on` for a truth."""
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else str(key): value for key, value in found.items()}


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", ())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_only_targets_that_exist(path: Path) -> None:
    called = {
        target
        for job in read(path)["jobs"].values()
        for step in job.get("steps", ())
        for target in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))
    }
    assert called
    assert called <= TARGETS


SHELL = sorted({*WORKFLOWS, ROOT / "Makefile", ROOT / "Dockerfile", *ROOT.glob("scripts/*.sh")})
SHELL.append(ROOT / ".ci" / "run")


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_what_workflows_and_scripts_run_is_in_the_repository(path: Path) -> None:
    """Modules behind `python -m`, and files of the repository that a command names."""
    text = path.read_text(encoding="utf-8")
    for module in re.findall(r"(?:python3?|PYTHON\)?) -m ([\w.]+)", text):
        if module.partition(".")[0] in ("llamaswap_py", "bench", "tests"):
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    folders = r"(?:scripts|bench|configs|requirements|docs|llamaswap_py)"
    for name in re.findall(rf"(?<![\w./$}}-])(?:\./)?({folders}/[\w./-]+\.\w+)", text):
        assert (ROOT / name).exists(), name


def test_the_script_of_the_workflow_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    called = set(re.findall(r"\bmake (?:-s )?([a-z][\w-]*)", script.read_text(encoding="utf-8")))
    assert called
    assert called <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_job_waits_for_is_a_job(path: Path) -> None:
    jobs = read(path)["jobs"]
    for job in jobs.values():
        needs = job.get("needs", [])
        assert {needs} if isinstance(needs, str) else set(needs) <= set(jobs)
        assert ("uses" in job) != ("steps" in job)
        for step in job.get("steps", ()):
            assert ("run" in step) != ("uses" in step), step
            for value in re.findall(r"\$\{\{ *([\w.]+)", str(step)):
                assert value.split(".")[0] in ("matrix", "runner", "github", "hashFiles"), value
                if value.startswith("matrix."):
                    assert value.removeprefix("matrix.") in job["strategy"]["matrix"]
            for pattern in re.findall(r"hashFiles\('([^']+)'\)", str(step)):
                assert list(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_take_few_rights(path: Path) -> None:
    workflow = read(path)
    for step in steps(workflow):
        if action := step.get("uses"):
            assert re.fullmatch(r"[\w-]+/[\w-]+@(?:release/)?v\d+", action), action
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job or "uses" in job
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()


def test_every_push_is_tested_on_linux_and_macos() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    assert {"push", "pull_request", "workflow_call"} <= set(workflow["on"])
    runs = {name: str(job["runs-on"]) for name, job in workflow["jobs"].items()}
    assert runs["linux"].startswith("ubuntu")
    assert runs["macos"].startswith("macos")
    assert workflow["jobs"]["linux"]["steps"][-1]["run"] == ".ci/run"
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").endswith("\nexec make test\n")


def test_a_release_is_tested_checked_and_published_without_a_token() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/ci.yml"
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("tests", "build")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()
    runs = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert runs == ['make release-check TAG="$GITHUB_REF_NAME"', "make dist"]


def test_the_tests_that_make_names_are_there() -> None:
    for name in ("QUICK", "PORTABLE"):
        found = re.search(rf"^{name} := ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
        assert found is not None
        for pattern in found[1].replace("\\\n", " ").split():
            assert list(ROOT.glob(pattern)), f"{name}: {pattern}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_ask_for_the_report(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    reports = [part for part in form["body"] if part.get("id") == "report"]
    assert "`lswap report`" in reports[0]["attributes"]["label"]


@pytest.fixture
def faults() -> Callable[[str, str, str], list[str]]:
    found: Callable[[str, str, str], list[str]] = runpy.run_path(
        str(ROOT / "scripts" / "check_release.py"), run_name="check_release"
    )["faults"]
    return found


def test_a_release_has_its_version_as_tag_and_in_the_changelog(
    faults: Callable[[str, str, str], list[str]],
) -> None:
    log = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-28\n"
    assert faults("v1.2.3", "1.2.3", log) == []
    assert "tag the commit v1.2.3" in faults("1.2.3", "1.2.3", log)[0]
    assert "the tag is missing" in faults("", "1.2.3", log)[0]
    assert "CHANGELOG.md has no section" in faults("v1.2.30", "1.2.30", log)[0]
    assert "CHANGELOG.md has no section" in faults("v1x2.3", "1x2.3", log)[0]


def test_the_version_of_today_can_be_released(
    faults: Callable[[str, str, str], list[str]],
) -> None:
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert faults(f"v{__version__}", __version__, log) == []
