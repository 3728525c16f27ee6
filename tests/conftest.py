"""What the tests need from the machine: a real llama-server, and tiny models that say a sentence.

A test that needs something a machine lacks skips and names it; with `CI` set a skip is a failure.
The list of what was missing is printed last.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import pytest

from llamaswap_py.llamacpp.paths import engines_folder

USERS_ENGINES = engines_folder()  # before any test names another place

hypothesis.settings.register_profile("lswap", deadline=None)  # time decides nothing here
hypothesis.settings.load_profile("lswap")

if TYPE_CHECKING:
    from collections.abc import Iterator


class TinyModel(Protocol):
    """Write (once per session) a tiny GGUF that answers every prompt with `sentence`."""

    def __call__(self, name: str, sentence: str, **knobs: Any) -> Path: ...


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _users_engines_stay() -> Iterator[None]:
    """Fail a test which changes the engines that the user has installed."""
    before = _names_in(USERS_ENGINES)
    yield
    assert before <= _names_in(USERS_ENGINES), "this test removed an engine of the user"


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


@pytest.fixture(scope="session")
def llama_server() -> str:
    """The path of a real llama-server, as `engine: auto` finds it."""
    from llamaswap_py.errors import EngineError
    from llamaswap_py.llamacpp.binaries import locate_engine

    try:
        return str(locate_engine("auto").path)
    except EngineError as error:
        pytest.skip(f"missing: llama-server ({error})")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    from llamaswap_py.demo.tiny_gguf import write_tiny_model

    folder = tmp_path_factory.mktemp("models")
    written: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    def write(name: str, sentence: str, **knobs: Any) -> Path:
        said = sentence, knobs
        others = written.setdefault(name, [])
        if said not in others:
            others.append(said)
        at = others.index(said)
        # Each of the models that tests have given one name has a folder of its own.
        path = (folder / str(at) if at else folder) / f"{name}.gguf"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_tiny_model(path, sentence, **knobs)
        return path

    return write


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path leaves room for unix socket names (107 bytes in all)."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="lswap-t-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    """Print, last, what this machine lacked."""
    reasons = sorted(
        {str(report.longrepr[2]).removeprefix("Skipped: ") for report in _skips(terminalreporter)}
    )
    if reasons:
        terminalreporter.section("what this machine lacked")
        for reason in reasons:
            terminalreporter.line(f"  {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and _skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skips(reporter: Any) -> list[Any]:
    return list(reporter.stats.get("skipped", ())) if reporter else []
