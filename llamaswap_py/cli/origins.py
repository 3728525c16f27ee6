"""Which configuration a command means when it names none, and where models usually lie."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from llamaswap_py.config.file import Origin
from llamaswap_py.config.found import Folder, models_in
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.errors import ConfigError
from llamaswap_py.hub.cache import cache_folder
from llamaswap_py.units import showable


def choose_origin(
    config: Path | None, config_dir: Path | None, model_dirs: tuple[Path, ...]
) -> Origin:
    """Return what a command line names; naming nothing, the usual file, else the usual models.

    What was chosen for the user is said on stderr. Raises ConfigError when there is nothing.
    """
    if config is not None and config.is_dir():
        if config_dir is not None:
            remedy = "name one folder, or a file and a folder"
            raise ConfigError("two folders of files", where=str(config), remedy=remedy)
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
    """Return where a configuration is looked for, first one first."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path("lswap.yaml"), Path(config).expanduser() / "lswap" / "config.yaml"


def usual_file() -> Path | None:
    """Return the configuration that is meant where none is named, and say on stderr which it is."""
    for file in usual_files():
        if file.is_file():
            print(f"using {_here(file)}", file=sys.stderr)
            return file
    return None


def usual_model_dirs() -> tuple[Path, ...]:
    """Return where people and other programs keep GGUF files.

    Sources: llama.cpp's fs_get_cache_directory (common/common.cpp), LM Studio's "My Models",
    huggingface_hub's constants.py.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    places = (
        Path("~/models"),
        Path(os.environ.get("LLAMA_CACHE") or f"{cache}/llama.cpp"),
        Path("~/.lmstudio/models"),
        Path("~/.cache/lm-studio/models"),
        cache_folder(),
    )
    return tuple(dict.fromkeys(place.expanduser() for place in places))


def found_folders(places: tuple[Path, ...]) -> list[Folder]:
    """Return what lies in those of the places that have a model."""
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
        f"lswap: no configuration file; serving {models} of {where}. "
        "`lswap init` writes a file to begin with",
        file=sys.stderr,
    )
    return Origin(model_dirs=tuple(Path(folder.path) for folder in folders))


def serves_text(origin: Origin) -> str:
    """Return what a configuration is read from, for people: `lswap.yaml`, `~/models`."""
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
