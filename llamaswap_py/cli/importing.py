"""`lswap import …`: write a configuration from what other programs have."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamaswap_py.cli.common import command_group

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.config.sections import Config
    from llamaswap_py.importing.draft import Draft
    from llamaswap_py.importing.ollama import OllamaManifest
    from llamaswap_py.llamacpp.options import Option, OptionTable

__all__ = ["app"]

app = command_group("Write a configuration from another program's settings.")

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The file to write; without it, standard output."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]


@app.command("llama-swap")
def llama_swap(
    source: Annotated[Path, typer.Argument(help="llama-swap's config.yaml.")],
    output: Output = None,
    force: Force = False,
) -> None:
    """Import llama-swap's config.yaml.

    Macros, groups, matrix, filters, ttl and hooks are carried over.
    """
    from llamaswap_py.config.yaml_tree import plain_value, read_yaml
    from llamaswap_py.importing.llama_swap import read_llama_swap

    root = read_yaml(_read(source), str(source))
    draft = read_llama_swap(None if root is None else plain_value(root), os.environ, _new_draft())
    _finish(draft, f"llama-swap's {source.name}", output, force)


@app.command("llama-cpp")
def llama_cpp(
    source: Annotated[Path, typer.Argument(help="A preset file (llama-server --models-preset).")],
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(help="The router's --models-dir, if it had one."),
    ] = None,
    output: Output = None,
    force: Force = False,
) -> None:
    """Import an INI file of presets of llama.cpp's router."""
    from llamaswap_py.importing.llama_cpp import read_ini

    folders = [os.path.abspath(path.expanduser()) for path in models_dir or ()]
    draft = read_ini(_read(source), str(source), _options_of(""), model_dirs=folders)
    _finish(draft, f"llama.cpp's {source.name}", output, force)


@app.command("ollama")
def ollama(
    source: Annotated[
        Path | None,
        typer.Argument(help="Ollama's models folder (default: OLLAMA_MODELS, ~/.ollama/models, …)"),
    ] = None,
    output: Output = None,
    force: Force = False,
) -> None:
    """Import Ollama's models: used in place, not copied."""
    from llamaswap_py.estimate.files import use_of
    from llamaswap_py.importing.ollama import read_ollama
    from llamaswap_py.storage.regular_files import read_regular

    folder = Path(os.path.abspath(source or _ollama_folder()))  # the new file may be anywhere
    blobs = folder / "blobs"

    def path_of(digest: str) -> str:
        return str(blobs / digest.replace(":", "-"))

    def read_blob(digest: str) -> str | None:
        try:
            return read_regular(path_of(digest)).decode()
        except (OSError, ValueError):  # UnicodeDecodeError too, and a NUL in the name
            return None

    draft = read_ollama(_manifests(folder), path_of, read_blob)
    for preset in draft.models.values():  # Ollama learns from the file what a model is for
        if use := use_of(preset["model"]):
            preset["args"] = {**preset.get("args", {}), use: True}
    _finish(draft, f"Ollama's models in {folder}", output, force)


@app.command("command")
def command(
    line: Annotated[str, typer.Argument(help="The command, in quotes: 'llama-server -m …'.")],
    name: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    output: Output = None,
    force: Force = False,
) -> None:
    """Import a llama-server command line."""
    from llamaswap_py.errors import ConfigError
    from llamaswap_py.importing.command import (
        is_llama_server,
        name_of,
        read_command,
        split_command,
        take_environment,
    )

    draft = _new_draft()
    try:
        env, words = take_environment(split_command(line))
    except ValueError as error:
        raise ConfigError(f"the command cannot be parsed: {error}") from None
    if not is_llama_server(words):
        given = repr(words[0]) if words else "nothing"
        remedy = "give the whole line in quotes: 'llama-server -m model.gguf …'"
        if words and os.path.basename(words[0]) in ("docker", "podman"):
            remedy = (
                "give the part after the image, with the paths of this machine instead of the "
                "container's: 'llama-server -m ~/models/model.gguf …'"
            )
        raise ConfigError(f"the command runs {given}, not llama-server", remedy=remedy)
    preset = read_command(words, env, draft, "command")
    called = name or name_of(preset)
    if others := [each for each in preset.pop("aliases", []) if each != called]:
        preset["aliases"] = others
    if "model_dirs" in draft.settings and not {"model", "hf"} & preset.keys():
        draft.settings["defaults"] = preset  # a router: its options are those of all its models
    else:
        draft.models[called] = preset
    _finish(draft, "a llama-server command", output, force)


@cache
def _options_of(engine: str) -> Mapping[str, Option] | None:
    """Return the options of a llama-server; "" means the engine in use. None if there is none."""
    from llamaswap_py.errors import EngineError
    from llamaswap_py.llamacpp.binaries import locate_engine

    try:
        return locate_engine(
            os.path.abspath(os.path.expanduser(engine)) if engine else "auto"
        ).options
    except EngineError:
        return None


def _table_for(engine: str) -> OptionTable:
    from llamaswap_py.llamacpp.options import table_of

    here = engine and os.path.exists(os.path.expanduser(engine))
    return table_of(_options_of(engine if here else ""))


def _new_draft() -> Draft:
    from llamaswap_py.importing.draft import Draft

    return Draft(table_for=_table_for)


def _read(path: Path) -> str:
    from llamaswap_py.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file cannot be read: {reason}", where=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("this is not UTF-8 text", where=str(path)) from None


def _ollama_folder() -> Path:
    from llamaswap_py.errors import ConfigError

    places = [
        *([Path(os.environ["OLLAMA_MODELS"])] if os.environ.get("OLLAMA_MODELS") else []),
        Path.home() / ".ollama" / "models",
        Path("/usr/share/ollama/.ollama/models"),
    ]
    for place in places:
        if (place / "manifests").is_dir():
            return place
    tried = ", ".join(map(str, places))
    raise ConfigError(
        f"there are no Ollama models in {tried}",
        remedy="name the folder that has the folder `manifests`",
    )


def _manifests(folder: Path) -> list[OllamaManifest]:
    from llamaswap_py.errors import ConfigError
    from llamaswap_py.importing.ollama import OllamaManifest
    from llamaswap_py.units import is_utf8, showable

    root = folder / "manifests"
    if not root.is_dir():
        raise ConfigError("this folder has no folder `manifests`", where=str(folder))
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if not is_utf8(str(path)):
            print(f"skipped, the name is not UTF-8: {showable(str(path))}", file=sys.stderr)
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        found.append(OllamaManifest(path.relative_to(root).parts, text))
    return found


def _finish(draft: Draft, source: str, output: Path | None, force: bool) -> None:
    """Write the draft. Print on stderr what was not carried over, and what to do next."""
    from llamaswap_py.importing.draft import note_relative, render
    from llamaswap_py.importing.engine_options import fit_to_engines, settle_margin
    from llamaswap_py.importing.usable_names import mend_names

    mend_names(draft)
    _drop_engines(draft)
    settle_margin(draft)
    fit_to_engines(draft, _table_for)
    note_relative(draft)
    text = render(draft, source)
    if output is None:
        print(text, end="")
    else:
        _write(output, text, force)
    lines = draft.lines()
    for line in lines:
        print(f"note: {line}", file=sys.stderr)
    _say_wrong(text, output or Path("standard output"), draft)
    if output is not None:
        print(
            f"wrote {output}: {_count(len(draft.models), 'model')}, {_count(len(lines), 'note')}."
            f" Next: lswap check {output}",
            file=sys.stderr,
        )


def _drop_engines(draft: Draft) -> None:
    """Remove paths of engines that are missing here; the engine in use runs their models."""
    for name, preset in draft.models.items():
        engine = str(preset.get("engine", ""))
        if engine and not os.path.exists(os.path.expanduser(engine)):
            text = "left out: it is not on this machine; the file's own `engine` is used"
            draft.note(f"models.{name}.engine", text, engine)
            del preset["engine"]


def _say_wrong(text: str, path: Path, draft: Draft) -> None:
    """Print which models cannot run as written, and what no note has said about them."""
    from llamaswap_py.config.parse import load_files
    from llamaswap_py.config.scan import scan_folder
    from llamaswap_py.config.sources import SourceText
    from llamaswap_py.errors import ConfigError

    files = [SourceText(str(path), os.path.dirname(os.path.abspath(path)), text)]
    home = os.path.expanduser("~")
    failing = dict(draft.failing)
    try:
        config = load_files(
            files,
            name=str(path),
            env=os.environ,
            home=home,
            scan=scan_folder,
            keep_broken=True,
        )
    except ConfigError as error:
        print(f"mistakes to fix before the file works:\n{error}", file=sys.stderr)
        return
    for name, mistakes in config.broken.items():
        for where, message, remedy in mistakes if name not in failing else ():
            mistake = ConfigError(message, where=where, remedy=remedy)
            print(f"mistake to fix: {mistake}", file=sys.stderr)
        failing[name] = None
    _say_missing(config)
    if failing:
        names = ", ".join(list(failing)[:6])
        more = f" and {len(failing) - 6} more" if len(failing) > 6 else ""
        text = f"{_count(len(failing), 'model')} cannot run as written, the others can"
        print(f"{text}: {names}{more}", file=sys.stderr)


def _say_missing(config: Config) -> None:
    """Print what `lswap check` will report on this machine, one line for each kind of mistake."""
    from llamaswap_py.supervisor.device_lists import find_devices
    from llamaswap_py.supervisor.located_engines import Engines
    from llamaswap_py.supervisor.prepare import prepare
    from llamaswap_py.supervisor.preset_files import PUT_IT_THERE

    engines = Engines(config)
    devices = find_devices(config, engines)
    found: dict[str, list[str]] = {}
    for name, prepared in prepare(config, engines, devices).items():
        for each in prepared.problems if name not in config.broken else ():
            missing = each.remedy == PUT_IT_THERE
            said = "these files are missing" if missing else f"{each.message} - {each.remedy}"
            what = each.message.partition(": ")[0] if missing else name
            found.setdefault(said, []).append(what)
    for said, some in found.items():
        names = list(dict.fromkeys(some))
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        print(f"`lswap check` will report: {said}: {', '.join(names[:6])}{more}", file=sys.stderr)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _write(path: Path, text: str, force: bool) -> None:
    from llamaswap_py.errors import ConfigError
    from llamaswap_py.storage.regular_files import write_whole

    if os.path.lexists(path) and not force:
        remedy = "name another file, or overwrite it with --force"
        raise ConfigError("this file exists", where=str(path), remedy=remedy)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file cannot be written: {reason}", where=str(path)) from None
