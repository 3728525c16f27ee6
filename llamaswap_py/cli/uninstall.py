"""`lswap uninstall`: lists and removes lswap's files on this machine.

It removes only what lswap has made. Other files in folders named lswap stay, and are listed. Models
stay, too, because other programs share Hugging Face's cache.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.children.running_lswaps import LOCK, bases, find_running
from llamaswap_py.cli import service
from llamaswap_py.cli.init import short_path, usual_files
from llamaswap_py.cli.tables import print_table
from llamaswap_py.errors import ConfigError, LswapError, StateError
from llamaswap_py.hub.cache import cache_folder, find_cached, remove_cached, repo_folder
from llamaswap_py.hub.refs import parse_ref
from llamaswap_py.llamacpp.paths import engines_folder, probes_folder
from llamaswap_py.storage.kv_files import sweep_kept
from llamaswap_py.storage.record_folder import learned_folder, xdg_base
from llamaswap_py.storage.regular_files import read_regular
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS: Final = ("engines", "cache", "state", "config", "service", "runtime", "completion")
MADE: Final = {
    "engines": ("engines",),
    "cache": ("build", "probes", "estimates", "kv", "demo"),
    "state": ("learned", "traffic", "captures"),
}
"""What lswap makes in its folders for data, cache and state."""
_COMPLETION: Final = "_LSWAP_COMPLETE"
_SHOWN: Final = 10
SHARED_MEMORY: Final = Path(f"/dev/shm/lswap-{os.getuid()}")
"""Conversations that `keep_kv` has in main memory, also of an lswap with other variables."""


class Item(msgspec.Struct):
    """One thing to remove; its size in bytes. `unit` is the service that a unit file belongs to."""

    what: str
    path: str
    size: int
    unit: str | None = None


class Report(msgspec.Struct):
    """The whole list. `stays` says what stays and why, `failed` what could not be removed."""

    removed: bool
    items: list[Item]
    stays: list[str]
    running: list[str]
    failed: list[str] = []


def run(*, keep: Sequence[str], models: Sequence[str], yes: bool, as_json: bool) -> bool:
    """Print the list; with `yes`, remove all of it. Return whether that worked.

    Raises StateError while an lswap runs, ConfigError for a word that is not a part or a model.
    """
    if unknown := [word for word in keep if word not in KINDS]:
        remedy = f"one of {', '.join(KINDS)}"
        raise ConfigError(f"--keep {unknown[0]}: there is no such part", remedy=remedy)
    items = [one for one in found() if one.what not in keep]
    items += [_model(name) for name in models]
    running = [str(one) for one in find_running(os.environ)]
    report = Report(yes, items, [*_stays(items), *_others(models)], running)
    if yes and running:
        remedy = "`lswap stop` ends it first"
        raise StateError(f"an lswap runs: {', '.join(running)}", remedy=remedy)
    if yes:
        report.failed = [failed for one in items if (failed := _removed(one, quiet=as_json))]
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report, [f"--keep {word}" for word in keep] + [f"--model {name}" for name in models])
    return not report.failed


def found() -> list[Item]:
    """Return lswap's files on this machine, part by part."""
    items = []
    for what, folder in _folders().items():
        for name in MADE[what]:
            items += _item(what, folder / name)
    for path in _config_files():
        items += _item("config", path)
    for mine, name, paths in service.installed():
        for path in paths:
            items += [Item("service", str(path), _size(path), f"{'user' if mine else ''}:{name}")]
    for path in (*_runtime(), SHARED_MEMORY):
        items += _item("runtime", path)
    for path in _completions():
        items += _item("completion", path)
    return items


def _folders() -> dict[str, Path]:
    return {
        "engines": engines_folder().parent,
        "cache": probes_folder().parent,
        "state": learned_folder().parent,
    }


def _item(what: str, path: Path) -> list[Item]:
    there = path.exists() or path.is_symlink()
    return [Item(what, str(path), _size(path))] if there else []


def _config_files() -> Iterator[Path]:
    with suppress(OSError):
        for path in sorted(usual_files()[-1].parent.iterdir()):
            if path.suffix in (".yaml", ".yml"):
                yield path


def _runtime() -> Iterator[Path]:
    """Yield the runtime folders, and the folders of kept conversations."""
    for base in bases(os.environ):
        with suppress(OSError):
            for path in sorted(base.iterdir()):
                if (path / LOCK).exists() or path.name == "kv":
                    yield path


def _completions() -> Iterator[Path]:
    """Yield the scripts of `lswap completion`, at the places that its help names."""
    data, config = xdg_base("XDG_DATA_HOME", ".local/share"), xdg_base("XDG_CONFIG_HOME", ".config")
    for path in (
        data / "bash-completion" / "completions" / "lswap",
        Path("~/.zfunc/_lswap").expanduser(),
        config / "fish" / "completions" / "lswap.fish",
    ):
        with suppress(OSError, UnicodeDecodeError):
            if _COMPLETION in read_regular(path).decode():
                yield path


def _model(name: str) -> Item:
    """Return a model in Hugging Face's cache by its name."""
    ref = parse_ref(name)
    folder, cached = repo_folder(ref), find_cached(ref)
    if not folder.is_dir() or (ref.tag and cached is None):
        remedy = "`lswap uninstall` lists what is there"
        raise ConfigError(f"{ref} is not in {cache_folder()}", remedy=remedy)
    size = _size(folder)
    if ref.tag and cached is not None:
        size = sum(Path(file).stat().st_size for file in cached.files)
    return Item(f"model {ref}", str(folder), size)


def _size(path: Path) -> int:
    """Return the bytes that a file or a tree takes; links count as themselves."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            return sum(_size(Path(entry.path)) for entry in entries)
    return 0


def _stays(items: Sequence[Item]) -> Iterator[str]:
    """Yield other files in folders named lswap."""
    taken = {one.path for one in items}
    made = {path for what, folder in _folders().items() for path in _below(folder, MADE[what])}
    for folder in dict.fromkeys((*_folders().values(), usual_files()[-1].parent)):
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                if str(path) not in taken | made and not (path / LOCK).exists():
                    yield f"{short_path(path)}: not made by lswap"


def _below(folder: Path, names: Sequence[str]) -> list[str]:
    return [str(folder / name) for name in names]


def _others(models: Sequence[str]) -> Iterator[str]:
    """Yield what lswap leaves alone."""
    folder = cache_folder()
    named = {str(repo_folder(parse_ref(name))) for name in models}
    repos = [one for one in sorted(folder.glob("models--*")) if str(one) not in named]
    with_models = [one for one in repos if next(one.glob("snapshots/**/*.gguf"), None)]
    if with_models:
        names = [
            f"{one.name.removeprefix('models--').replace('--', '/')} ({format_size(_size(one))})"
            for one in with_models[:_SHOWN]
        ]
        more = f" and {len(with_models) - _SHOWN} more" if len(with_models) > _SHOWN else ""
        yield (
            f"{short_path(folder)}, which other programs use too: {', '.join(names)}{more};"
            " --model USER/REPO removes one"
        )
    yield "your models, and the files that a configuration names (keys.file, log.dir)"
    yield f"the program: pip uninstall llamaswap_py, or delete its environment {sys.prefix}"


def _removed(item: Item, *, quiet: bool) -> str:
    """Remove one thing; return the error, or "" if it is removed."""
    path = Path(item.path)
    try:
        if item.unit is not None:
            kind, _, name = item.unit.partition(":")
            if path.exists():  # removed together with the service's other unit
                service.remove_units(kind == "user", name, quiet=True)
        elif item.what.startswith("model "):
            ref = parse_ref(item.what.removeprefix("model "))
            _remove(path) if not ref.tag else remove_cached(ref)
        elif path == SHARED_MEMORY:
            sweep_kept(path)
            with suppress(OSError):  # a part of it is in use
                path.rmdir()
        else:
            _remove(path)
    except OSError as error:
        return f"{error.filename or path} cannot be removed: {error.strerror or error}"
    except LswapError as error:
        return str(error)
    for parent in (path.parent, path.parent.parent):
        if parent.name == "lswap":
            with suppress(OSError):  # it is not empty yet
                parent.rmdir()
    if not quiet:
        print(f"removed {short_path(path)}")
    return ""


def _remove(path: Path) -> None:
    """Remove a file, a tree, or a link (but not its target)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _print(report: Report, options: Sequence[str]) -> None:
    total = format_size(sum(one.size for one in report.items))
    if not report.items:
        print("lswap has left nothing here")
    elif not report.removed:
        rows = [
            (one.what, short_path(Path(one.path)), format_size(one.size)) for one in report.items
        ]
        print_table(("what", "where", "size"), rows)
    for line in report.stays:
        print(f"stays: {line}")
    for line in report.failed:
        print(f"lswap: {line}", file=sys.stderr)
    if report.items and not report.removed:
        for one in report.running:
            print(f"runs: {one}; `lswap stop` ends it first")
        command = " ".join(("lswap uninstall --yes", *options))
        print(f"this is only a list: `{command}` removes these {total}")
        print(f"--keep keeps a part: {', '.join(KINDS)}")
