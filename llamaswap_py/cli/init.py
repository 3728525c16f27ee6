"""`lswap init`: writes a commented configuration for the models on this machine.

Also: which configuration a command uses if none is named, and where models usually are.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.cli.show import memory_text
from llamaswap_py.config.discovery import Folder, models_in, preset_of
from llamaswap_py.config.load import Origin
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.sections import Memory
from llamaswap_py.errors import ConfigError, EngineError
from llamaswap_py.estimate import Estimator
from llamaswap_py.hub.cache import cache_folder
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.llamacpp.features import EngineFeatures
from llamaswap_py.storage.record_folder import xdg_base
from llamaswap_py.storage.regular_files import write_whole
from llamaswap_py.supervisor.device_lists import devices_for
from llamaswap_py.supervisor.fit import BOUND, FitCheck
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import prepare
from llamaswap_py.units import GIB, HOST, format_size, showable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llamaswap_py.config.discovery import FoundModel
    from llamaswap_py.devices import Device
    from llamaswap_py.supervisor.fit import FitResult
    from llamaswap_py.supervisor.mends import Mend


def choose_origin(
    config: Path | None, config_dir: Path | None, model_dirs: tuple[Path, ...]
) -> Origin:
    """Return what a command line names, else the usual file, else the models in the usual places.

    A choice made for the user is printed on stderr. Raises ConfigError if nothing is found.
    """
    if config is not None and config.is_dir():
        if config_dir is not None:
            remedy = "name one folder, or a file and a folder"
            raise ConfigError(
                "two configuration folders are given", where=str(config), remedy=remedy
            )
        config, config_dir = None, config
    if config is not None or config_dir is not None:
        return Origin(config, config_dir, model_dirs)
    if model_dirs:
        for folder in model_dirs:
            if (found := scan_folder(str(folder.expanduser()))).problem:
                where = f"--models-dir {folder}"
                raise ConfigError(found.problem, where=where, remedy="check the path")
        return Origin(model_dirs=model_dirs)
    file = usual_file()
    return Origin(file) if file is not None else _usual_models()


def usual_files() -> tuple[Path, ...]:
    """Return the places where a configuration is looked for, in order."""
    return Path("lswap.yaml"), xdg_base("XDG_CONFIG_HOME", ".config") / "lswap" / "config.yaml"


def usual_file() -> Path | None:
    """Return the configuration for a command that names none, and print its path on stderr."""
    for file in usual_files():
        if file.is_file():
            print(f"using {_here(file)}", file=sys.stderr)
            return file
    return None


def usual_model_dirs() -> tuple[Path, ...]:
    """Return the folders where users and other programs keep GGUF files.

    Sources: llama.cpp's fs_get_cache_directory (common/common.cpp), LM Studio's "My Models",
    huggingface_hub's constants.py.
    """
    cache = xdg_base("XDG_CACHE_HOME", ".cache")
    places = (
        Path("~/models"),
        Path(os.environ.get("LLAMA_CACHE") or f"{cache}/llama.cpp"),
        Path("~/.lmstudio/models"),
        Path("~/.cache/lm-studio/models"),
        cache_folder(),
    )
    return tuple(dict.fromkeys(place.expanduser() for place in places))


def found_folders(places: tuple[Path, ...]) -> list[Folder]:
    """Return the usual places that have a model."""
    scanned = [scan_folder(str(place)) for place in places]
    return [folder for folder in scanned if models_in([folder])]


def _usual_models() -> Origin:
    places = usual_model_dirs()
    folders = found_folders(places)
    if not folders:
        looked = ", ".join(map(short_path, (*usual_files(), *places)))
        raise ConfigError(
            f"there is no configuration and no model (looked for {looked})",
            remedy="name a folder of GGUF files with --models-dir, fetch a model with "
            "`lswap pull user/repo`, or take Ollama's with `lswap import ollama`",
        )
    count = len(models_in(folders))
    where = ", ".join(f"{short_path(Path(one.path))} ({len(models_in([one]))})" for one in folders)
    models = "1 model" if count == 1 else f"{count} models"
    print(
        f"lswap: no configuration file; serving {models} from {where}. "
        "`lswap init` writes a first file",
        file=sys.stderr,
    )
    return Origin(model_dirs=tuple(Path(folder.path) for folder in folders))


def serves_text(origin: Origin) -> str:
    """Return where a configuration is read from, as text: `lswap.yaml`, `~/models`."""
    places = [one for one in (origin.file, origin.folder, *origin.model_dirs) if one is not None]
    names = [short_path(Path(os.path.abspath(one))) for one in places]
    models = json.loads(origin.said or "{}").get("models", {})
    return ", ".join([*names, *(model["hf"] for model in models.values())])


def _here(file: Path) -> str:
    """Return a file of this folder as `./NAME`."""
    return short_path(file) if file.is_absolute() else f"./{file}"


def short_path(path: Path) -> str:
    """Return a path with ~ for the home folder."""
    home = os.path.expanduser("~")
    text = str(path)
    return showable("~" + text[len(home) :] if text.startswith(home + os.sep) else text)


_BESIDE: Final = 1.1
"""Memory of a model as a multiple of its weights, with a usual context and its buffers."""
_PLAIN: Final = re.compile(r"[A-Za-z~/][\w./+@~-]*", re.ASCII)
_WORDS: Final = ("true", "false", "null", "yes", "no", "on", "off")
_STARTER: Final = "Qwen/Qwen3-0.6B-GGUF:Q8_0"


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has: devices, engine, models."""

    devices: Sequence[Device]
    engine: Engine | None
    models: Sequence[FoundModel]
    folders: Sequence[str]
    looked: Sequence[Path]
    judged: Mapping[str, FitResult] = field(default_factory=dict)
    """The memory of each model; models that were not estimated in time are missing."""


def run(path: Path, model_dirs: tuple[Path, ...], *, force: bool) -> None:
    """Write the file; raises ConfigError when it is there already, or cannot be written."""
    if str(path) == "-":
        print(config_text(look(model_dirs), "-"), end="")
        return
    if path.is_dir():
        raise ConfigError(
            "this is a folder, not the file to write",
            where=str(path),
            remedy=f"lswap init --models-dir {path} writes lswap.yaml with its models; "
            f"lswap init {path / 'lswap.yaml'} writes it there",
        )
    if path.suffix.lower() == ".gguf":
        raise ConfigError(
            "this is a model, not the file to write",
            where=str(path),
            remedy=f"lswap init --models-dir {path} writes lswap.yaml with it",
        )
    if os.path.lexists(path) and not force:
        remedy = "name another file, or overwrite it with --force"
        raise ConfigError("this file exists already", where=str(path), remedy=remedy)
    machine = look(model_dirs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, config_text(machine, str(path)).encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"it cannot be written: {reason}", where=str(path)) from None
    models = len(machine.models)
    if models:
        print(f"wrote {path}: {models} model{'' if models == 1 else 's'} found")
    else:
        print(
            f"wrote {path}: no model was found, so it has a small one, which the first request"
            " downloads"
        )
    if machine.engine is None:
        print(
            "no llama-server was found: `lswap engine install` or `lswap engine build` gets one",
            file=sys.stderr,
        )
    print(f"next: lswap check {path} && lswap up {path}")


def look(model_dirs: tuple[Path, ...]) -> Machine:
    """Return what this machine has, with the models in the given folders or the usual places."""
    looked = tuple(folder.expanduser().absolute() for folder in model_dirs) or usual_model_dirs()
    for folder in looked if model_dirs else ():
        scanned = scan_folder(str(folder))
        if scanned.problem:
            where = f"--models-dir {folder}"
            raise ConfigError(scanned.problem, where=where, remedy="check the path")
        if scanned.warning:
            print(scanned.warning, file=sys.stderr)
    try:
        engine = locate_engine()
    except EngineError:
        engine = None
    devices = devices_for(engine, Memory())
    folders = found_folders(looked)
    machine = Machine(devices, engine, models_in(folders), [one.path for one in folders], looked)
    return replace(machine, judged=_judge(machine))


def _judge(machine: Machine) -> Mapping[str, FitResult]:
    """Judge every model with the settings that the file will have, as `lswap check` will."""
    presets = {model.id: preset_of(model) for model in machine.models}
    text = msgspec.json.encode(presets).decode().replace("${", "$${")
    text = "\n".join([*_settings(machine), f"models: {text}"])
    here, home = os.getcwd(), os.path.expanduser("~")
    try:
        config = load_config(text, path=None, base_dir=here, env={}, home=home)
    except ConfigError:  # `lswap check` will report it
        return {}
    prepared = prepare(config, Engines(config), tuple(machine.devices))
    if machine.engine is None:  # the formulas need none
        backend = "cpu" if all(one.id == HOST for one in machine.devices) else "cuda"
        absent = Engine(Path("/nonexistent/llama-server"), None, backend, "", EngineFeatures())
        prepared = {name: replace(one, engine=absent) for name, one in prepared.items()}
    fit_check = FitCheck(config, tuple(machine.devices), Estimator(), fresh=False)
    judged = asyncio.run(fit_check.all(list(prepared.values()), BOUND))
    return {name: one for name, one in judged.items() if one.estimate is not None}


def config_text(machine: Machine, path: str) -> str:
    """Return the file."""
    return "\n".join([*_head(machine, path), *_settings(machine), *_models(machine)]) + "\n"


def _head(machine: Machine, path: str) -> Iterator[str]:
    yield "# lswap's configuration, begun by `lswap init` with what this machine has:"
    for device in machine.devices:
        yield f"#   {device.id}: {format_size(device.total)} ({device.source})"
    engine = machine.engine
    if engine is None:
        yield "#   no llama-server yet: `lswap engine install` or `lswap engine build` gets one"
    else:
        yield f"#   llama-server {engine.label} ({short_path(engine.path)})"
    yield f"# Try it: `lswap check {path}`, then `lswap up {path}`; changes take effect while"
    yield "# it runs. docs/configuration.md has every key, `lswap schema` a schema for editors."


def _settings(machine: Machine) -> Iterator[str]:
    budget = ", ".join(f"{one.id}: {max(one.total // GIB, 1)}GiB" for one in machine.devices)
    yield from (
        "",
        "listen: 127.0.0.1:8080   # :8080 for other machines, too; with keys: `lswap key new NAME`",
        "",
        "memory:",
        "  margin: auto            # 1GiB of every device stays free, as docs/memory.md says",
        f"  # devices: {{{budget}}}   # use less than there is",
        "",
        "defaults:                 # every model starts from these",
        "  args:                   # llama-server's options, by their names in its --help",
        "    parallel: 2           # requests at the same time, at most",
        "    kv-unified: true      # they share the context, which lswap chooses so that it fits",
        "    # ctx-size: 16k       # or this context for every model",
        "  ttl: 30m                # unload after this time without a request; or never",
    )


def _models(machine: Machine) -> Iterator[str]:
    on = [model for model in machine.models if _can_run(model, machine)]
    yield from ("", "models:")
    if not on:
        looked = ", ".join(short_path(place) for place in machine.looked)
        what = "none that fits this machine" if machine.models else "none"
        yield f"  # {what} was found in {looked}."
        yield "  # The first request downloads this small one:"
        yield f"  qwen3-0.6b: {{hf: {_STARTER}}}"
    for model in machine.models:
        off = "" if _can_run(model, machine) else "# "
        about = f"{format_size(model.size)}, {_about(model, machine)}"
        yield f"  {off}{_quoted(model.id)}:    # {about}"
        yield f"  {off}  model: {_quoted(short_path(Path(model.file.path)))}"
        args = {
            name: _quoted(short_path(Path(file)))
            for name, file in preset_of(model).get("args", {}).items()
        }
        if (judged := machine.judged.get(model.id)) and (mend := _mend(judged)):
            args |= mend.args
        if args:
            yield f"  {off}  args:"
            for name, value in args.items():
                yield f"  {off}    {name}: {value}"
    if on:
        folders = ", ".join(_quoted(short_path(Path(folder))) for folder in machine.folders)
        yield "    # more: aliases: [gpt-4o-mini], keep: always (loaded at start, never unloaded)"
        yield ""
        yield "# Or serve every GGUF file below these folders, also new ones:"
        yield f"# model_dirs: [{folders}]"


def _can_run(model: FoundModel, machine: Machine) -> bool:
    judged = machine.judged.get(model.id)
    if judged is None:
        return bool(_fits(model, machine.devices))
    return not judged.problem or _mend(judged) is not None


def _mend(judged: FitResult) -> Mend | None:
    """Return the options of its own entry with which a model fits."""
    return next((one for one in judged.mends if one.is_of_entry), None)


def _about(model: FoundModel, machine: Machine) -> str:
    """Return a model's memory as text, and whether it fits."""
    judged = machine.judged.get(model.id)
    if judged is None or judged.estimate is None:
        fits = ", ".join(_fits(model, machine.devices))
        return f"fits {fits}" if fits else "more than any device here has"
    needs = memory_text(judged.estimate.footprint)
    if not judged.problem:
        return f"fits: needs {needs}"
    if (mend := _mend(judged)) is None:
        return f"does not fit: needs {needs}"
    words = ", ".join(f"{name}: {value}" for name, value in mend.args.items())
    return f"with {words} it needs {memory_text(dict(mend.footprint))}; without, {needs}"


def _fits(model: FoundModel, devices: Sequence[Device]) -> list[str]:
    """Return the devices that a model without an estimate fits alone, by a rule of thumb."""
    needs = round(model.size * _BESIDE)
    return [one.id for one in devices if needs <= one.total - one.margin]


def _quoted(text: str) -> str:
    """Return a text as a YAML value, with quotes where it needs them."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS and text != "~":
        return text
    return "'" + text.replace("'", "''").replace("${", "$${") + "'"
