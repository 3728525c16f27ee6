"""The option `--peer`: another program to measure, started here or running already.

    --peer 'llama-swap=llama-swap --listen 127.0.0.1:{port} --config {config}'
    --peer 'mine=./my-router --port {port} --ini {ini}'
    --peer 'other=http://127.0.0.1:9292'

A program is started for each table, with the words in braces filled in: `{port}` to listen on at
127.0.0.1; `{config}` a file in llama-swap's form and `{ini}` one in the form of llama.cpp's router,
both with the same models, one of which may be loaded; `{engine}` the llama-server, or the stub that
stands for one; `{upstream}` the URL of the stub that runs already, for plain proxies.

A server that runs has to serve a model `stub` for the tables with the stub upstream (at the port of
`--upstream`), and `alpha` and `beta` for the others (`python -m bench models FOLDER` writes them).
A peer that does not answer gets no figures; the summary says why.
"""

from __future__ import annotations

import json
import shlex
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_FIELDS = ("port", "config", "ini", "engine", "upstream")


@dataclass(frozen=True, slots=True)
class PeerOption:
    """A peer by command (`words`, with {fields}) or by the `port` of this machine it listens on."""

    name: str
    words: tuple[str, ...] = ()
    port: int = 0

    def argv(self, fields: Mapping[str, str]) -> list[str]:
        """Return its command line with the fields filled in; other braces stay as they are."""
        filled = []
        for word in self.words:
            for name, value in fields.items():
                word = word.replace(f"{{{name}}}", value)  # noqa: PLW2901
            filled.append(word)
        return filled


def read_peer_option(text: str) -> PeerOption:
    """Read NAME=URL or NAME=COMMAND. Raises ValueError with what is wrong with it."""
    name, equals, what = text.partition("=")
    name, what = name.strip(), what.strip()
    if not (equals and name and what):
        raise ValueError(f"{text!r} is not NAME=URL or NAME='command with {{port}}'")
    if what.startswith(("http://", "https://")):
        return PeerOption(name, port=_local_port(what))
    if "{port}" not in what:
        raise ValueError(f"{name}: the command has no {{port}}; known: {', '.join(_FIELDS)}")
    return PeerOption(name, words=tuple(shlex.split(what)))


def _local_port(url: str) -> int:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost"):
        raise ValueError(f"{url}: only http://127.0.0.1:PORT is compared fairly, side by side")
    if parts.path.strip("/") or parts.query:
        raise ValueError(f"{url}: a URL without a path, please")
    return parts.port or 80


def listener(port: int) -> int | None:
    """Return the process that listens on a port here; None: not to be seen."""
    try:
        found = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    pids = [
        one.pid
        for one in found
        if one.status == psutil.CONN_LISTEN and tuple(one.laddr)[1:] == (port,)
    ]
    return pids[0] if pids else None


def swap_config(engine: Path, models: Mapping[str, Path], args: Mapping[str, str | int]) -> str:
    """Return the models as a configuration of llama-swap, which has room for one."""
    words = [word for name, value in args.items() for word in (f"--{name}", str(value))]
    presets = {}
    for name, path in models.items():
        argv = [str(engine), "--model", str(path), "--host", "127.0.0.1", *words]
        # The port is a macro of llama-swap, and must not be quoted.
        presets[name] = {"cmd": f"{shlex.join(argv)} --port ${{PORT}}"}
    return json.dumps({"healthCheckTimeout": 30, "models": presets}, indent=1)  # JSON is YAML


def router_presets(models: Mapping[str, Path], args: Mapping[str, str | int]) -> str:
    """Return the models as presets of llama.cpp's router."""
    lines = "".join(f"{name} = {value}\n" for name, value in args.items())
    return "\n".join(f"[{name}]\nmodel = {path}\n{lines}" for name, path in models.items())
