"""`lswap engine list|use|install|doctor` as a person or a script calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli.app import exit_code
from llamaswap_py.cli.engine import app
from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp import binaries
from llamaswap_py.llamacpp.binaries import VARIABLE
from llamaswap_py.llamacpp.doctor import CheckState, examine

from .engine_fakes import install_server, write_script


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(binaries, "COMMON_PLACES", ())
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, LswapError):  # `lswap` itself says it, as of every command
        return exit_code(result.exception), f"{result.output}{result.exception}\n"
    return result.exit_code, result.output


def test_list_shows_good_and_broken_engines() -> None:
    bad = install_server(7002)
    write_script(bad, "exit 9")
    good = install_server(7001)
    status, text = call("list")
    assert status == 0
    assert str(good) in text
    assert "broken: " in text
    status, text = call("list", "--json")
    first, second = json.loads(text)
    assert "status 9" in first["error"]
    assert (second["build"], second["backend"], second["path"]) == (7001, "cpu", str(good))
    assert second["features"]["metrics"] is True


def test_an_empty_list_says_what_to_do() -> None:
    assert "lswap engine build" in call("list")[1]
    assert json.loads(call("list", "--json")[1]) == []


def test_use_changes_what_comes_first() -> None:
    install_server(7002)
    old = install_server(7001)
    assert call("use", "b7001-cpu")[0] == 0
    assert json.loads(call("list", "--json")[1])[0]["path"] == str(old)
    status, text = call("use", "b1-cpu")
    assert status == 1
    assert "b7001-cpu, b7002-cpu" in text


def test_install_reports_errors_with_a_remedy(home: Path) -> None:
    status, text = call("install", str(home / "missing.zip"), "--sha256", "0" * 64)
    assert status == 1
    assert "there is no file" in text
    assert " - check the path" in text
    assert text.strip().count("\n") == 0


def test_doctor_is_content_with_an_engine_only() -> None:
    status, text = call("doctor")
    assert status == 1
    assert "no usable engine: run `lswap engine install` or `lswap engine build`" in text
    install_server(7001)
    status, text = call("doctor", "--json")
    assert status == 0
    report = json.loads(text)
    assert report["usable"] is True
    groups = {check["group"] for check in report["checks"]}
    assert groups == {
        "engines",
        "build tools",
        "NVIDIA",
        "AMD",
        "Vulkan",
        "limits",
        "folders",
        "children",
    }


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (
            'echo "Available devices:"; echo "  SYCL0: Arc (8192 MiB, 8000 MiB free)"',
            CheckState.OK,
            "SYCL0: Arc (8 GiB)",
        ),
        ('echo "Available devices:"; echo "  (none)"', CheckState.OK, "none but the CPU"),
        ("echo no such driver >&2; exit 1", CheckState.PROBLEM, "status 1: no such driver"),
    ],
)
def test_doctor_names_the_devices_of_an_engine(
    home: Path, answer: str, state: CheckState, detail: str
) -> None:
    server = install_server(7001)
    script = server.read_text().replace("--metrics", "--list-devices   show devices\n--metrics", 1)
    server.write_text(script.replace("esac", f"--list-devices) {answer} ;;\nesac"))
    (check,) = [one for one in examine().checks if one.name.endswith(" devices")]
    assert check.state is state
    assert detail in check.detail


def test_doctor_names_what_an_old_engine_lacks_and_what_is_broken() -> None:
    install_server(7001)
    write_script(install_server(7000), "echo libcuda.so.1 is missing >&2; exit 127")
    engines = [check for check in examine().checks if check.group == "engines"]
    assert [check.state for check in engines] == [CheckState.OK, CheckState.PROBLEM]
    assert "no child mode" in engines[0].detail
    assert "libcuda.so.1" in engines[1].detail
    assert all(check.remedy for check in engines)


def test_every_missing_thing_comes_with_a_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home / "empty"))
    checks = examine().checks
    missing = [check for check in checks if check.state is not CheckState.OK]
    assert {"c++", "cmake", "ninja", "git", "llama-server"} <= {check.name for check in missing}
    assert [check.name for check in missing if not check.remedy] == []


def test_a_folder_that_cannot_be_written_is_a_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = home / "blocked"
    blocked.write_text("a file, not a folder")
    monkeypatch.setenv("XDG_DATA_HOME", str(blocked))
    (check,) = [c for c in examine().checks if (c.group, c.name) == ("folders", "engines")]
    assert check.state is CheckState.PROBLEM
    assert "XDG_DATA_HOME" in check.remedy


def test_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, typer; before = set(sys.modules); import llamaswap_py.cli.engine;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert set(done.stdout.split()) - {"__future__"} == {
        "llamaswap_py",
        "llamaswap_py.cli",
        "llamaswap_py.cli.engine",
        "llamaswap_py.cli.common",
        "llamaswap_py.llamacpp",  # it has nothing in it
        "llamaswap_py.llamacpp.router_mode",  # constants
    }
