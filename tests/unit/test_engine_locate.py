"""Which llama-server is taken, and what is said about one that cannot be."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp import binaries, probe
from llamaswap_py.llamacpp.binaries import (
    VARIABLE,
    Broken,
    choose_engine,
    find_engines,
    locate_engine,
)
from llamaswap_py.llamacpp.probe import Engine

from .engine_fakes import count_runs, install_server, write_script, write_server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has nothing yet."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(binaries, "COMMON_PLACES", ("~/llama.cpp/build/bin/llama-server",))
    for name in (VARIABLE, "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_auto_follows_the_documented_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = write_server(home / "llama.cpp/build/bin/llama-server")
    assert locate_engine().path == common
    on_path = write_server(home / "bin/llama-server")
    monkeypatch.setenv("PATH", f"{home}/bin:/usr/bin:/bin")
    assert locate_engine().path == on_path
    installed = install_server(7001)
    assert locate_engine().path == installed
    variable = write_server(home / "mine/llama-server")
    monkeypatch.setenv(VARIABLE, str(variable))
    assert locate_engine().path == variable
    configured = write_server(home / "configured")
    assert locate_engine("~/configured").path == configured
    assert [entry.path for entry in find_engines()] == [variable, installed, on_path, common]


def test_newest_installation_first_and_gpu_before_cpu() -> None:
    for build, backend in ((7001, "cpu"), (7002, "cpu"), (7002, "cuda"), (7000, "vulkan")):
        install_server(build, backend)
    labels = [entry.label for entry in find_engines() if isinstance(entry, Engine)]
    assert labels == ["b7002-cuda", "b7002-cpu", "b7001-cpu", "b7000-vulkan"]


def test_chosen_engine_is_preferred_until_it_is_gone(home: Path) -> None:
    old, new = install_server(7001), install_server(7002)
    choose_engine("b7001-cpu")
    assert locate_engine().path == old
    elsewhere = write_server(home / "elsewhere")
    choose_engine(str(elsewhere))
    assert locate_engine().path == elsewhere
    elsewhere.unlink()
    assert locate_engine().path == new
    with pytest.raises(EngineError, match="no engine named b1-cpu"):
        choose_engine("b1-cpu")


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ({"backend": "cpu"}, "b7002-cpu"),
        ({"build": "b7001"}, "b7001-cuda"),
        ({"build": 7001, "backend": "cpu"}, "b7001-cpu"),
    ],
)
def test_a_build_or_backend_can_be_asked_for(spec: dict[str, object], label: str) -> None:
    for build, backend in ((7001, "cpu"), (7001, "cuda"), (7002, "cpu"), (7002, "rocm")):
        install_server(build, backend)
    assert locate_engine(spec).label == label


def test_what_was_asked_for_and_what_is_there_are_named() -> None:
    install_server(7001)
    with pytest.raises(EngineError, match=r"build 7009.*is b7001-cpu"):
        locate_engine({"build": "b7009"})
    with pytest.raises(EngineError, match=r"`lswap engine build --ref b7009 --backend cuda`"):
        locate_engine({"build": 7009, "backend": "cuda"})
    with pytest.raises(EngineError, match="is not a build"):
        locate_engine({"build": "newest"})


def test_nothing_found_lists_every_place_and_the_remedy() -> None:
    with pytest.raises(EngineError) as caught:
        locate_engine()
    for part in (VARIABLE, "lswap/engines", "PATH", "~/llama.cpp", "lswap engine build"):
        assert part in str(caught.value)


def test_a_broken_installation_does_not_hide_a_good_one() -> None:
    bad, good = install_server(7002), install_server(7001)
    write_script(bad, "echo libcuda.so.1: cannot open shared object file >&2; exit 127")
    assert locate_engine().path == good
    first = find_engines()[0]
    assert isinstance(first, Broken)
    assert "libcuda.so.1" in first.error.message
    good.unlink()
    with pytest.raises(EngineError, match=r"looked at: .*status 127.*libcuda"):
        locate_engine()


def test_a_broken_engine_in_the_variable_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_server(7001)
    monkeypatch.setenv(VARIABLE, str(home / "missing"))
    with pytest.raises(EngineError, match=f"{VARIABLE}: .*No such file"):
        locate_engine()


class TestBinariesThatAreNone:
    def test_missing(self, home: Path) -> None:
        with pytest.raises(EngineError, match="No such file"):
            locate_engine(str(home / "missing"))

    def test_a_folder(self, home: Path) -> None:
        with pytest.raises(EngineError, match="is not a file"):
            locate_engine(str(home))

    def test_not_executable(self, home: Path) -> None:
        server = write_server(home / "llama-server")
        server.chmod(0o644)
        with pytest.raises(EngineError, match="is not executable") as caught:
            locate_engine(str(server))
        assert "chmod +x" in caught.value.remedy

    def test_another_kind_of_machine(self, home: Path) -> None:
        # An ELF header of a machine that does not exist.
        binary = home / "llama-server"
        binary.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xff" + bytes(100))
        binary.chmod(0o755)
        with pytest.raises(EngineError, match=r"cannot be run \(Exec format error\)"):
            locate_engine(str(binary))

    def test_another_program(self) -> None:
        with pytest.raises(EngineError, match=r"is not a llama-server .*Python 3"):
            locate_engine(sys.executable)

    def test_another_tool_of_llama_cpp(self, home: Path) -> None:
        tool = write_script(home / "llama-cli", "echo 'version: 7000 (abcdef12)'")
        with pytest.raises(EngineError, match="is not a llama-server"):
            locate_engine(str(tool))

    def test_one_that_hangs(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, "PROBE_TIMEOUT", 0.2)
        server = write_script(home / "llama-server", "exec sleep 60")
        with pytest.raises(EngineError, match="did not end"):
            locate_engine(str(server))

    def test_only_its_help_hangs(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both questions share one time, and what a wrapper started is ended with it."""
        monkeypatch.setattr(probe, "PROBE_TIMEOUT", 3.0)
        server = write_script(
            home / "llama-server",
            'case "$1" in --version) echo "version: 7000 (abcdef12)";; '
            f"*) sleep 600 & echo $! > {home}/pid; wait;; esac",
        )
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"--help did not end within 3 s"):
            locate_engine(str(server))
        assert time.monotonic() - began < 60
        with suppress(psutil.NoSuchProcess):
            left = psutil.Process(int((home / "pid").read_text()))
            while left.status() != psutil.STATUS_ZOMBIE:  # whoever adopts it may not reap it
                assert time.monotonic() - began < 60
                time.sleep(0.01)


def test_a_probe_is_remembered_until_the_file_changes() -> None:
    server = install_server(7001)
    assert locate_engine() == locate_engine()
    assert count_runs(server) == 2  # --version and --help, once
    write_server(server, 7003)
    assert locate_engine().build == 7003
    assert count_runs(server) == 4


def test_a_damaged_or_unwritable_cache_only_costs_time(home: Path) -> None:
    install_server(7001)
    locate_engine()
    (entry,) = (home / ".cache/lswap/probes").iterdir()
    entry.write_text("{")
    assert locate_engine().build == 7001
    entry.unlink()
    entry.parent.rmdir()
    entry.parent.write_text("a file where the folder should be")
    assert locate_engine().build == 7001


def test_child_mode_is_read_from_the_binary_or_a_library_beside_it(home: Path) -> None:
    new = write_server(home / "new/llama-server", marks="cmd_child_to_router:state:")
    assert locate_engine(str(new)).features.child_mode
    thin = write_server(home / "thin/llama-server")
    assert not locate_engine(str(thin)).features.child_mode
    (home / "thin/libllama-server-impl.so").write_bytes(b"..cmd_child_to_router:state:..")
    os.utime(thin, (1, 1))
    assert locate_engine(str(thin)).features.child_mode
    old = write_server(home / "old/llama-server", marks="cmd_child_to_router:ready")
    assert locate_engine(str(old)).features.child_mode


def test_the_route_of_a_conversation_is_read_from_the_binary(home: Path) -> None:
    new = write_server(home / "new/llama-server", marks="/v1/stream")
    assert not locate_engine(str(new)).features.stream_in_path
    old = write_server(home / "old/llama-server", marks="/v1/stream/:conv_id")
    assert locate_engine(str(old)).features.stream_in_path


def test_options_and_neighbours(home: Path) -> None:
    engine = locate_engine(str(write_server(home / "llama-server")))
    assert engine.options["--port"].values == 1
    assert engine.features.unix_socket
    assert engine.fit_params is None
    write_script(home / "llama-fit-params", "true")
    assert engine.fit_params == home / "llama-fit-params"
