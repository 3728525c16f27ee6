"""Each file that lswap keeps for its next start: what a reader does if it is not what it expects.

A file of a newer release is set aside or left alone, and a damaged one is no reason not to start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from llamaswap_py.children.orphans import new_record, record_file, sweep, sweep_file, write_record
from llamaswap_py.children.running_lswaps import (
    LOCK,
    Served,
    find_running,
    start_time,
    write_served,
)
from llamaswap_py.estimate.buffer_limits import BufferLimits
from llamaswap_py.estimate.types import Estimate, Part, Source
from llamaswap_py.estimate.wanted import SCHEMA, Wanted
from llamaswap_py.hub.cache import find_cached, keep_listing, repo_folder
from llamaswap_py.hub.refs import HubFile, parse_ref
from llamaswap_py.llamacpp.binaries import choose_engine, locate_engine
from llamaswap_py.llamacpp.paths import engines_folder, probes_folder
from llamaswap_py.storage import LearnedFacts, RecordFolder, estimates_folder, learned_folder
from llamaswap_py.storage.counters import KeptTraffic, LoadRates, TrafficStore
from llamaswap_py.storage.record_folder import traffic_folder
from llamaswap_py.supervisor.strangers import SteadyStrangers
from tests.unit.engine_fakes import install_server

GIB: Final = 1 << 30


@dataclass(frozen=True)
class Format:
    """A file on disk. `read` tells what a start takes from it, `without` if it has no such file."""

    write: Callable[[], object]
    read: Callable[[], object]
    folder: Callable[[], Path]
    without: object = None
    pattern: str = "*.json"
    version: str | None = "version"
    """The member that carries the version; None if the file is too plain to have one."""
    set_aside: bool = True
    """Whether a file of a newer version gets another name; else it stays, or is written anew."""
    by_itself: bool = True
    """Whether it is written alone; else a whole folder is replaced."""

    def path(self) -> Path:
        (path,) = self.folder().glob(self.pattern)
        return path


def facts() -> LearnedFacts:
    return LearnedFacts(learned_folder())


def traffic() -> TrafficStore:
    return TrafficStore(traffic_folder(), "one")


def rates() -> LoadRates:
    return LoadRates(traffic_folder())


def strangers_write() -> None:
    steady = SteadyStrangers(clock=lambda: 0.0)
    steady.record({"host": GIB})
    steady.save()


def strangers_read() -> object:
    steady = SteadyStrangers(clock=lambda: 0.0)
    asyncio.run(steady.recall())
    return steady.least()


def estimates() -> RecordFolder[Estimate]:
    return RecordFolder(estimates_folder(), Estimate, version=SCHEMA)


WANTED: Final = Wanted("a", "a.gguf", (), (), gpus=("Vulkan0",))


def limits() -> BufferLimits:
    return BufferLimits(estimates_folder())


def runtime() -> Path:
    folder = Path(os.environ["XDG_RUNTIME_DIR"]) / "lswap" / "one"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def served_write() -> None:
    (runtime() / LOCK).write_text(f"{os.getpid()} {start_time(os.getpid())}")
    write_served(runtime(), Served(urls=("http://127.0.0.1:1",), what="two models"))


def served_read() -> object:
    (one,) = find_running(os.environ)
    return (one.served and one.served.what) or None


def child_write(path: Path) -> None:
    record = new_record("alpha#1", os.getpid(), "llama-server")
    assert record is not None
    write_record(path, record)


def child_read() -> list[str]:
    return [swept.record.name for swept in sweep(runtime())]


def cgroup_read() -> object:
    sweep_file(runtime() / "cgroups.json")
    return (runtime() / "cgroups.json").is_file()


def engine_write() -> None:
    """Install one and remember what it said; another is on PATH."""
    install_server(8000)
    locate_engine()


def choice_write() -> None:
    install_server(8000)
    choose_engine(str(install_server(7500)))


def build() -> object:
    return locate_engine().build


REF: Final = parse_ref("someone/model")


def listing_write() -> None:
    """List more files than are here: the model that is meant is not downloaded."""
    snapshot = repo_folder(REF) / "snapshots" / "abc"
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "model-Q2_K.gguf").write_bytes(b"x")
    keep_listing(REF, [HubFile("model-Q2_K.gguf", 1), HubFile("model-Q4_K_M.gguf", 1)])


FORMATS: Final = {
    "learned": Format(
        lambda: facts().record_ready("k", "a", {"host": 1}, None, 2.0),
        lambda: (one := facts().get("k")) and one.preset,
        learned_folder,
    ),
    "load rates": Format(
        lambda: rates().record("cpu", GIB, 2.0), lambda: rates().expect("cpu", GIB), traffic_folder
    ),
    "traffic": Format(
        lambda: traffic().write(KeptTraffic(saved_at=1.0)),
        lambda: (one := traffic().read()) and one.saved_at,
        traffic_folder,
    ),
    "strangers": Format(strangers_write, strangers_read, traffic_folder, without={}),
    "estimates": Format(
        lambda: estimates().write("k", Estimate(Source.DRY_RUN, (Part("host", "weights", 1),))),
        lambda: (one := estimates().read("k")) and one.footprint,
        estimates_folder,
    ),
    "limits": Format(
        lambda: limits().record(WANTED, "Vulkan0", GIB),
        lambda: limits().refused(WANTED),
        estimates_folder,
        without={},
    ),
    "probes": Format(
        engine_write,
        build,
        probes_folder,
        without=8000,  # it is asked again
        version="schema",
        set_aside=False,
    ),
    "the running lswap": Format(
        served_write, served_read, runtime, pattern="serves.json", set_aside=False
    ),
    "children": Format(
        lambda: child_write(record_file(runtime(), "alpha#1")),
        child_read,
        runtime,
        without=[],
        set_aside=False,
    ),
    "cgroups": Format(
        lambda: child_write(runtime() / "cgroups.json"),
        cgroup_read,
        runtime,
        without=False,
        pattern="cgroups.json",
        set_aside=False,
    ),
    "manifests": Format(
        lambda: install_server(8000),
        build,
        engines_folder,
        without=7000,
        pattern="*/manifest.json",
        version=None,  # a newer one is used as far as it is understood, so that the engine runs
        by_itself=False,
    ),
    "the choice of engine": Format(
        choice_write, build, engines_folder, without=8000, pattern="current", version=None
    ),
    "listings": Format(
        listing_write,
        lambda: find_cached(REF) is None,
        lambda: repo_folder(REF),
        without=False,
        pattern=".lswap.json",
        version=None,
    ),
}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HF_HOME"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LSWAP_LLAMA_SERVER", raising=False)


@pytest.fixture(autouse=True)
def on_path(places: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama-server that is found last. It needs `places`: the user's engines are not touched."""
    server = install_server(7000)
    folder = tmp_path / "on-path"
    server.parent.rename(folder)
    assert engines_folder().is_relative_to(tmp_path)
    shutil.rmtree(engines_folder())
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def as_loop(path: Path) -> None:
    """A file that nobody can open, root included."""
    path.unlink()
    path.symlink_to(path.name)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def make_newer(path: Path, member: str, others: dict[str, Any]) -> bytes:
    found = msgspec.json.decode(path.read_bytes())
    content = msgspec.json.encode(found | {member: found[member] + 1} | others)
    path.write_bytes(content)
    return content


DAMAGES: Final[dict[str, Callable[[Path], object]]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "noise": lambda path: path.write_bytes(b"\xff\x00\xfe{"),
    "noise in text": lambda path: path.write_bytes(b'{"version":1,"name":"\xff\xfe"}'),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "nesting": lambda path: path.write_bytes(b"[" * 100_000),
    "another shape": lambda path: path.write_bytes(b'{"version":1,"schema":1,"record":[]}'),
    "a list": lambda path: path.write_bytes(b"[1, 2]"),
    "a folder": as_folder,
    "unreadable": as_loop,
    "a pipe": as_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_counts_as_absent(name: str, damage: str) -> None:
    one = FORMATS[name]
    one.write()
    path = one.path()
    assert one.read() != one.without or name == "probes"
    one.write()  # what reads a record of a child may remove it
    DAMAGES[damage](path)
    assert one.read() == one.without
    assert one.read() == one.without, "and the next start is as good"


@pytest.mark.parametrize("damage", [one for one in DAMAGES if one not in ("a folder", "a pipe")])
@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.by_itself])
def test_what_is_damaged_is_written_again(name: str, damage: str) -> None:
    one = FORMATS[name]
    one.write()
    path, whole = one.path(), one.read()
    one.write()
    DAMAGES[damage](path)
    one.read()
    one.write()
    assert one.read() == whole


VERSIONED: Final = [name for name, one in FORMATS.items() if one.version]


@pytest.mark.parametrize("shape", ["the same", "another"])
@pytest.mark.parametrize("name", VERSIONED)
def test_a_newer_release_loses_nothing_to_this_one(
    name: str, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = FORMATS[name]
    one.write()
    path, whole = one.path(), one.read()
    one.write()
    assert one.version is not None
    others = {"record": "new", "name": {}, "urls": 7, "path": None} if shape == "another" else {}
    content = make_newer(path, one.version, others)
    with caplog.at_level(logging.WARNING):
        assert one.read() == one.without or name == "cgroups"
    assert not caplog.records
    left = path
    if one.set_aside:
        version = msgspec.json.decode(content)[one.version]
        left = path.with_name(f"{path.name}.v{version}")
    if name != "probes":  # which can be asked again
        assert left.read_bytes() == content
    one.write()
    assert one.read() == whole
    if one.set_aside:
        assert left.read_bytes() == content


def test_a_record_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    """Upgrade, go back, upgrade again."""

    class Old(msgspec.Struct):
        size: int

    class New(msgspec.Struct):
        sizes: list[int]

    old = RecordFolder(tmp_path / "records", Old, version=1)
    new = RecordFolder(tmp_path / "records", New, version=2)
    old.write("k", Old(1))
    assert new.read("k") is None
    new.write("k", New([2]))
    assert old.read("k") == Old(1)
    assert old.read("k") == Old(1)
    old.write("k", Old(3))
    assert new.read("k") == New([2])
    assert old.read("k") == Old(3)
    old.discard("k")
    new.discard("k")
    assert list((tmp_path / "records").iterdir()) == []
