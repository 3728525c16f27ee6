"""`lswap rm`: take a model out of the file, and its downloaded files off the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamaswap_py.cli.asking import Key, Url
from llamaswap_py.cli.completion import model_names
from llamaswap_py.cli.starting import Json
from llamaswap_py.cli.usage import LOOKS

if TYPE_CHECKING:
    from llamaswap_py.config.records import Config, Preset
    from llamaswap_py.hub.cache import Cached

__all__ = ["app"]

app = typer.Typer(add_completion=False, **LOOKS)


@app.command()
def rm(
    name: Annotated[
        str, typer.Argument(help="A model's name or alias.", autocompletion=model_names)
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="Of this file (default: the running lswap's).")
    ] = None,
    files: Annotated[
        bool, typer.Option("--files", help="Delete what was downloaded of it, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Take a model out of the file; the rest stays as it is written, comments and all."""
    from llamaswap_py.config.file import read_config
    from llamaswap_py.errors import ConfigError

    path = config if config is not None else _running_file(url, key)
    read = read_config(path)
    preset = read.find(name)
    if preset is None:
        known = f"it has: {', '.join(read.models)}"
        raise ConfigError(f"there is no model {name!r} in it", where=str(path), remedy=known)
    cached = _downloaded(preset, read) if files else None
    _confirm(f"Take {preset.id} out of {path}{_and_files(cached)}?", yes=yes)
    _remove(path, preset.id)
    freed = 0 if cached is None else _remove_files(preset)
    if as_json:
        import msgspec

        report = {"model": preset.id, "config": str(path), "freed": freed}
        print(msgspec.json.encode(report).decode())
        return
    print(f"{preset.id} is taken out of {path}")
    if cached is not None:
        from llamaswap_py.units import format_size

        print(f"{format_size(freed)} are free again")


def _remove_files(preset: Preset) -> int:
    from llamaswap_py.hub.cache import remove_cached
    from llamaswap_py.hub.refs import parse_ref

    return remove_cached(parse_ref(preset.hf or ""))


def _running_file(url: str | None, key: str | None) -> Path:
    from llamaswap_py.cli.asking import remote
    from llamaswap_py.errors import ConfigError

    with remote(url, key) as lswap:
        url, path = lswap.url, lswap.snapshot().config_path
    if path is None or not Path(path).is_file():
        raise ConfigError(f"the lswap at {url} has no file here", remedy="pass --config FILE")
    return Path(path)


def _remove(path: Path, id: str) -> None:
    """Take a preset out, unless something else in the file names it: then nothing is changed."""
    from llamaswap_py.config.file import read_config
    from llamaswap_py.editing import remove_preset
    from llamaswap_py.errors import ConfigError

    before = path.read_bytes()
    remove_preset(path, id)
    try:
        read_config(path)
    except ConfigError as error:
        path.write_bytes(before)
        raise ConfigError(
            f"without {id!r} the file would be wrong, and is left as it was: {error.message}",
            remedy="take it out there first",
        ) from None


def _downloaded(preset: Preset, config: Config) -> Cached | None:
    """Return what was downloaded of a preset; None where there is nothing. Raises ConfigError."""
    from llamaswap_py.errors import ConfigError
    from llamaswap_py.hub.cache import find_cached
    from llamaswap_py.hub.refs import parse_ref

    if preset.hf is None:
        raise ConfigError(
            f"{preset.id!r} is not from a repository: its file {preset.model} is yours",
            remedy="leave --files out, and delete it by hand",
        )
    cached = find_cached(parse_ref(preset.hf))
    if cached is None:
        return None
    mine = {Path(file).resolve() for file in cached.files}
    for other in config.models.values():
        if other.id != preset.id and mine & _files_of(other):
            raise ConfigError(
                f"{other.id!r} uses the same files", remedy="leave --files out, or remove it first"
            )
    return cached


def _files_of(preset: Preset) -> set[Path]:
    """Return the files that a preset needs, as far as they are here."""
    from llamaswap_py.hub.cache import find_cached
    from llamaswap_py.hub.refs import parse_ref

    named = [preset.model, *(value for value in preset.args.values() if isinstance(value, str))]
    if preset.hf is not None and (cached := find_cached(parse_ref(preset.hf))) is not None:
        named += cached.files
    return {Path(file).resolve() for file in named if file}


def _and_files(cached: Cached | None) -> str:
    from llamaswap_py.units import format_size

    if cached is None:
        return ""
    size = sum(Path(file).stat().st_size for file in cached.files)
    return f", and delete {len(cached.files)} downloaded files ({format_size(size)})"


def _confirm(question: str, *, yes: bool) -> None:
    from llamaswap_py.errors import StateError

    if yes:
        return
    if not sys.stdin.isatty():
        raise StateError("nobody can be asked whether to remove it", remedy="pass --yes")
    typer.confirm(question, abort=True)
