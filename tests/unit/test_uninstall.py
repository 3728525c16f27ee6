"""`lswap uninstall`: only what lswap made goes, only when told, and never a model unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaswap_py.children.runtime_dir import RuntimeDir
from llamaswap_py.cli import service, uninstall
from llamaswap_py.cli.uninstall import found, run
from llamaswap_py.errors import ConfigError, StateError
from llamaswap_py.llamacpp import paths as engine_places
from llamaswap_py.storage import record_folder as state_places
from tests.unit.test_service import stand_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which lswap was used, and other things lie beside."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    folders = {"DATA_HOME": ".local/share", "CACHE_HOME": ".cache", "STATE_HOME": ".local/state"}
    for name, folder in {**folders, "CONFIG_HOME": ".config", "RUNTIME_DIR": "run"}.items():
        (short_dir / folder).mkdir(parents=True)
        monkeypatch.setenv(f"XDG_{name}", str(short_dir / folder))
    monkeypatch.setenv("HOME", str(short_dir))
    monkeypatch.setattr(service, "_SYSTEM", short_dir / "etc")
    monkeypatch.setattr(uninstall, "SHARED_MEMORY", short_dir / "shm" / "lswap-0")
    for path in (
        ".local/share/lswap/engines/b1-cpu/bin/llama-server",
        ".cache/lswap/build/src/x.cpp",
        ".cache/lswap/probes/a.json",
        ".local/state/lswap/learned/a.json",
        ".config/lswap/config.yaml",
        ".config/lswap/notes.txt",
        "run/lswap/abc/lswap.pid",
        ".cache/huggingface/hub/models--org--x-GGUF/blobs/b",
        ".cache/huggingface/hub/models--org--y-GGUF/blobs/b",
        "models/mine.gguf",
    ):
        (short_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (short_dir / path).write_text("12345678")
    for name in ("x", "y"):
        repo = short_dir / f".cache/huggingface/hub/models--org--{name}-GGUF"
        snapshot = repo / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True)
        (snapshot / f"{name}-Q8_0.gguf").symlink_to(repo / "blobs" / "b")
    (short_dir / ".zfunc").mkdir()
    (short_dir / ".zfunc" / "_lswap").write_text("_LSWAP_COMPLETE=complete_zsh lswap")
    return short_dir


def files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def do(*, keep: tuple[str, ...] = (), models: tuple[str, ...] = (), yes: bool = False) -> bool:
    return run(keep=keep, models=models, yes=yes, as_json=False)


def test_it_only_lists_unless_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(home)
    assert do()
    assert files(home) == before
    out = capsys.readouterr().out
    for said in (
        "engines     ~/.local/share/lswap/engines",
        "completion  ~/.zfunc/_lswap",
        "org/x-GGUF (8",
        "this is only a list: `lswap uninstall --yes` removes these",
        "stays: ~/.config/lswap/notes.txt: not made by lswap",
        "pip uninstall llamaswap_py",
    ):
        assert said in out
    assert "mine.gguf" not in out
    run(keep=(), models=(), yes=False, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["removed"] is False
    assert {one["what"] for one in report["items"]} == {
        *("engines", "cache", "state", "config", "runtime", "completion")
    }


def test_what_lswap_made_is_removed(home: Path) -> None:
    assert do(yes=True)
    assert files(home) == {
        ".config/lswap/notes.txt",
        "models/mine.gguf",
        *(f".cache/huggingface/hub/models--org--{name}-GGUF/blobs/b" for name in "xy"),
        *(
            f".cache/huggingface/hub/models--org--{name}-GGUF/snapshots/c0ffee/{name}-Q8_0.gguf"
            for name in "xy"
        ),
    }
    assert not (home / ".local/share/lswap").exists()
    assert [one.what for one in found()] == []


def test_parts_are_kept_and_models_go_by_their_name(home: Path) -> None:
    assert do(keep=("engines", "config"), models=("org/x-GGUF",), yes=True)
    there = files(home)
    assert ".local/share/lswap/engines/b1-cpu/bin/llama-server" in there
    assert ".config/lswap/config.yaml" in there
    assert not any("x-GGUF" in path for path in there)
    assert any("y-GGUF" in path for path in there)


def test_one_build_of_a_repository_goes_by_its_tag(home: Path) -> None:
    assert do(models=("org/y-GGUF:Q8_0",), yes=True)
    assert not any("y-GGUF" in path for path in files(home))
    with pytest.raises(ConfigError, match="org/z-GGUF is not in"):
        do(models=("org/z-GGUF",), yes=True)


def test_a_wrong_word_removes_nothing(home: Path) -> None:
    before = files(home)
    with pytest.raises(ConfigError, match="--keep engine: there is no such part - one of engines"):
        do(keep=("engine",), yes=True)
    with pytest.raises(ConfigError, match="is not in"):
        do(models=("org/none",), yes=True)
    assert files(home) == before


def test_it_refuses_while_an_lswap_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RuntimeDir.choose(name="one"):
        before = files(home)
        with pytest.raises(StateError, match=r"an lswap runs: .*pid.* - `lswap stop` ends it"):
            do(yes=True)
        assert files(home) == before
        assert do()
        assert "runs: an lswap (pid " in capsys.readouterr().out


def test_a_link_is_removed_and_not_what_it_leads_to(home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_text("mine")
    (home / ".cache/lswap/kv").symlink_to(elsewhere)
    assert do(yes=True)
    assert (elsewhere / "x").read_text() == "mine"
    assert not (home / ".cache/lswap").exists()


def test_services_that_lswap_wrote_go_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(home, monkeypatch)
    units = home / "systemd" / "user"
    units.mkdir(parents=True)
    (units / "lswap.service").write_text(f"{service.MARK}, …\n")
    (units / "lswap.socket").write_text("[Socket]\n")
    (units / "other.service").write_text("[Unit]\n")
    assert do(yes=True)
    assert [path.name for path in units.iterdir()] == ["other.service"]


def test_what_cannot_be_removed_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(uninstall, "_remove", refuse)
    assert not do(keep=("service",), yes=True)
    assert "engines cannot be removed: Permission denied" in capsys.readouterr().err
    assert files(home)


def test_every_place_is_known(home: Path) -> None:
    """A folder that is made somewhere else must be added to `MADE`."""
    made = {(what, name) for what, names in uninstall.MADE.items() for name in names}
    named = set()
    for module in (state_places, engine_places):
        for name in vars(module):
            if name.endswith("_folder") and not name.startswith("_"):
                path = getattr(module, name)()
                what = next(
                    kind for kind, folder in uninstall._folders().items() if path.parent == folder
                )
                named.add((what, path.name))
    assert named == made - {("cache", "build")}  # which the build script makes
    assert "lswap/build" in (ROOT / "scripts" / "build_llama_cpp.sh").read_text()
