"""`lswap rm`: removes a model from the configuration, and its downloaded files from the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamaswap_py.cli.asking import Key, Url
from llamaswap_py.cli.common import LOOKS, Json
from llamaswap_py.cli.completion import model_names

if TYPE_CHECKING:
    from llamaswap_py.config.sections import Config, Preset

__all__ = ["app"]

app = typer.Typer(add_completion=False, **LOOKS)


@app.command()
def rm(
    name: Annotated[
        str, typer.Argument(help="A model's name or alias.", autocompletion=model_names)
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The file to change (default: the running lswap's)."),
    ] = None,
    files: Annotated[
        bool, typer.Option("--files", help="Also delete its downloaded files.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Remove a model from the configuration file.

    All other lines stay as they are, with their comments.
    """
    from llamaswap_py.config.edit import remove_preset
    from llamaswap_py.config.load import read_config
    from llamaswap_py.errors import ConfigError

    path = config if config is not None else _running_file(url, key)
    read = read_config(path)
    preset = read.find(name)
    if preset is None:
        known = f"it has: {', '.join(read.models)}"
        raise ConfigError(f"there is no model {name!r} in it", where=str(path), remedy=known)
    own = _downloaded(preset, read) if files else ()
    _confirm(f"Remove {preset.id} from {path}{_and_files(own)}?", yes=yes)
    remove_preset(path, preset.id, lambda: read_config(path))
    freed = _remove_files(preset, read) if files else 0
    if as_json:
        import msgspec

        report = {"model": preset.id, "config": str(path), "freed": freed}
        print(msgspec.json.encode(report).decode())
        return
    print(f"{preset.id} is removed from {path}")
    if own:
        from llamaswap_py.units import format_size

        print(f"{format_size(freed)} are free again")


def _remove_files(preset: Preset, config: Config) -> int:
    from llamaswap_py.supervisor.hub_models import delete_files

    return delete_files(preset.hf or "", _others(preset, config))


def _others(preset: Preset, config: Config) -> list[Preset]:
    return [one for one in config.models.values() if one.id != preset.id]


def _running_file(url: str | None, key: str | None) -> Path:
    from llamaswap_py.cli.asking import remote
    from llamaswap_py.client import calls
    from llamaswap_py.errors import ConfigError

    with remote(url, key) as lswap:
        url, path = lswap.url, lswap.ask(calls.state()).config_path
    if path is None or not Path(path).is_file():
        raise ConfigError(f"the lswap at {url} has no file here", remedy="pass --config FILE")
    return Path(path)


def _downloaded(preset: Preset, config: Config) -> tuple[str, ...]:
    """Return the downloaded files that only this preset uses. Raises ConfigError."""
    from llamaswap_py.errors import ConfigError
    from llamaswap_py.hub.cache import find_cached, own_files
    from llamaswap_py.hub.refs import parse_ref
    from llamaswap_py.supervisor.hub_models import needed_files

    if preset.hf is None:
        raise ConfigError(
            f"{preset.id!r} is not from a repository: its file {preset.model} is yours",
            remedy="leave --files out, and delete it by hand",
        )
    ref = parse_ref(preset.hf)
    cached = find_cached(ref)
    mine = set() if cached is None else {os.path.realpath(file) for file in cached.files}
    for other in _others(preset, config):
        if mine & needed_files(ref, [other])[0]:
            raise ConfigError(
                f"{other.id!r} uses the same files", remedy="leave --files out, or remove it first"
            )
    return own_files(ref, used=needed_files(ref, _others(preset, config))[0])


def _and_files(files: tuple[str, ...]) -> str:
    from llamaswap_py.units import format_size

    if not files:
        return ""
    size = sum(Path(file).stat().st_size for file in files)
    return f", and delete {len(files)} downloaded files ({format_size(size)})"


def _confirm(question: str, *, yes: bool) -> None:
    from llamaswap_py.errors import StateError

    if yes:
        return
    if not sys.stdin.isatty():
        raise StateError("there is no terminal to ask on", remedy="pass --yes")
    typer.confirm(question, abort=True)
