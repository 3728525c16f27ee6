"""A program which looks like llama-server and is lswap with the same arguments.

llama.cpp's tests start it by LLAMA_SERVER_BIN_PATH. With a model it is one preset; without one it
stands for llama.cpp's router, with a preset for each model of the cache.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from llamaswap_py.config.api_keys import hash_secret
from llamaswap_py.importing.command import pair_options, read_command
from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.llama_cpp import read_ini
from tests.upstream.models import FILES

_SIZE: Final = "64MiB"
_OF_SERVER: Final = ("--port", "--host", "--api-key", "--temp", "--seed", "--cors-origins")
_OF_ROUTER: Final = ("--models-dir", "--models-max", "--models-preset", "--no-models-autoload")
_TAG: Final = re.compile(r"[-.]([A-Za-z0-9_]+)\.gguf$")
"""The tag that llama.cpp's router reads in a file's name (common_list_cached_models)."""


def config_of(words: list[str], ini: str = "", more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return lswap's configuration for llama-server's arguments; `more` are names that clients use.

    `ini` is the text of `--models-preset`. The file of keys is the caller's.
    """
    given = {option: values for option, values in pair_options(words) if option in _OF_SERVER}
    router = {option: values for option, values in pair_options(words) if option in _OF_ROUTER}
    kept = [
        word
        for option, values in pair_options(words)
        if option not in {*_OF_SERVER, *_OF_ROUTER} - {"--temp", "--seed"} and option != "--offline"
        for word in (option, *values)
    ]
    draft = Draft()
    preset = read_command(["llama-server", *kept], {}, draft, "command")
    hosts = [one.strip() for one in given.get("--host", ["127.0.0.1"])[0].split(",")]
    config: dict[str, Any] = {
        "listen": [
            f"[{one}]:{given['--port'][0]}" if ":" in one else f"{one}:{given['--port'][0]}"
            for one in hosts
        ],
        "allow_unauthenticated": True,
        "memory": {"devices": {"host": "4GiB"}, "margin": "0MiB"},
    }
    if origins := given.get("--cors-origins"):
        local = [f"http://{host}:*" for host in ("localhost", "127.0.0.1", "[::1]")]
        named = [local if one == "localhost" else [one] for one in origins[0].split(",")]
        config["cors"] = {"origins": [one for each in named for one in each]}
    if {"model", "hf"} & preset.keys():
        names = [*preset.pop("aliases", []), *more]
        first, *aliases = dict.fromkeys(names or ["model"])
        entry = {**preset, "aliases": aliases, "memory": {"host": _SIZE}, "preload": True}
        return {**config, "default_model": first, "models": {first: entry}}
    return {**config, **_router(router, preset, ini)}


def _router(given: dict[str, list[str]], preset: dict[str, Any], ini: str) -> dict[str, Any]:
    cached = [
        f"{repo}:{match[1].upper()}"
        for repo, names in FILES.items()
        for name in names
        if (match := _TAG.search(name))
    ]
    models: dict[str, Any] = {name: {"hf": name} for name in cached}
    config: dict[str, Any] = {}
    defaults = {"args": preset.get("args", {}), "memory": {"host": _SIZE}}
    if ini:
        draft = read_ini(ini, "--models-preset")
        models |= draft.models
        settings = draft.settings.get("defaults", {})
        defaults["args"] = settings.get("args", {}) | defaults["args"]
    if folders := given.get("--models-dir"):
        config["model_dirs"] = folders
    if most := given.get("--models-max"):
        config["policy"] = {"max_loaded": int(most[0])}
    return {**config, "defaults": defaults, "models": models}


def main(argv: list[str]) -> None:
    """Write the file and become `lswap up`."""
    words = argv[1:]
    options = dict(pair_options(words))
    folder = Path(os.environ["UPSTREAM_WORK"]) / f"served-{options['--port'][0]}"
    folder.mkdir(parents=True, exist_ok=True)
    ini = options.get("--models-preset", [""])[0]
    names = tuple(json.loads(os.environ.get("UPSTREAM_NAMES", "[]")))
    config = config_of(words, Path(ini).read_text() if ini else "", names)
    if key := options.get("--api-key"):
        keys = [
            {"name": f"key{at}", "hash": hash_secret(one.encode()), "kind": "admin"}
            for at, one in enumerate(key[0].split(","))
        ]
        (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": keys}))
        config["keys"] = {"file": str(folder / "keys.yaml")}
    file = Path(f".lswap-{options['--port'][0]}.yaml")  # here, so that paths mean the same
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        os.environ[name] = str(folder)
    os.environ["HF_HUB_CACHE"] = os.environ.pop("LLAMA_CACHE")
    os.execv(sys.executable, [sys.executable, "-m", "llamaswap_py", "up", str(file)])


if __name__ == "__main__":
    main(sys.argv)
