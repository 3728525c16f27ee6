"""Who takes part: each peer is a proxy in front of the same stub, or of the same tiny models."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workplace import HERE, Workplace, free_port, run_tool, running

LSWAP = "lswap up"
LSWAP_RELAY = "lswap, one-line scheduler"
GO = "Go ReverseProxy"
NGINX = "nginx (no routing)"
DIRECT = "no proxy"
ROUTER = "llama.cpp router"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to be measured; `pid` is the process whose CPU counts."""

    port: int
    pid: int


def start_stub(place: Workplace, stack: ExitStack) -> tuple[Peer, Path]:
    """Start the stub upstream; return it and its unix socket."""
    port, path = free_port(), place.folder / "stub.sock"
    argv = [str(place.stub), "--unix", str(path), "--tcp", str(port)]
    core = place.cores[1] if place.cores else None
    pid = stack.enter_context(running(argv, port=port, log=place.folder / "stub.log", core=core))
    return Peer(port, pid), path


def start_lswap(
    place: Workplace,
    stack: ExitStack,
    *,
    engine: Path,
    models: Mapping[str, Path],
    args: Mapping[str, str | int] | None = None,
    concurrency: int | None = None,
    pin: bool = False,
) -> Peer:
    """Start the whole product, `lswap up`, with room for one model.

    `concurrency` sets how many requests a model may have open (None: as many as it has slots),
    `pin` keeps it on the proxies' core, and a stub child off it.
    """
    port = free_port()
    name = f"lswap-{port}"
    config = place.folder / f"{name}.yaml"
    preset: dict[str, Any] = {"memory": {"host": "64MiB"}, "args": dict(args or {})}
    if concurrency is not None:
        preset["concurrency"] = concurrency
    if place.cores and pin:
        preset["env"] = {"STUB_CPU": str(place.cores[1])}
    config.write_text(_lswap_config(port, engine, models, preset))
    core = place.cores[0] if place.cores and pin else None
    pid = stack.enter_context(
        running(
            [sys.executable, "-m", "llamaswap_py", "up", str(config)],
            port=port,
            log=place.folder / f"{name}.log",
            env=_private_folders(place),
            core=core,
        )
    )
    return Peer(port, pid)


def _lswap_config(
    port: int, engine: Path, models: Mapping[str, Path], preset: Mapping[str, Any]
) -> str:
    config = {
        "listen": f"127.0.0.1:{port}",
        "engine": str(engine),
        "memory": {"margin": 0, "cache_ram": 0, "devices": {"host": "8GiB"}},
        "policy": {"max_loaded": 1},
        "models": {name: {"model": str(path), **preset} for name, path in models.items()},
    }
    return json.dumps(config, indent=1)  # JSON is YAML


def _private_folders(place: Workplace) -> dict[str, str]:
    """The stub must not be remembered as an engine of this user."""
    return {"XDG_CACHE_HOME": str(place.folder / "cache")}


def start_relay_alone(place: Workplace, stack: ExitStack, upstream: Path) -> Peer:
    """Start wire and api with a scheduler of one line (fake_relay.py)."""
    port = free_port()
    argv = [sys.executable, "-m", "bench.fake_relay", str(port), str(upstream)]
    env = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    core = place.cores[0] if place.cores else None
    log = place.folder / "relay.log"
    pid = stack.enter_context(running(argv, port=port, log=log, env=env, core=core))
    return Peer(port, pid)


def start_go(place: Workplace, stack: ExitStack, upstream: Path) -> Peer | None:
    """Build and start Go's ReverseProxy; None where there is no Go."""
    go = shutil.which("go")
    if go is None:
        return None
    program, port = place.folder / "goproxy", free_port()
    run_tool([go, "build", "-o", str(program), "."], cwd=HERE / "peers" / "go")
    argv = [str(program), f"127.0.0.1:{port}", "unix", str(upstream)]
    core = place.cores[0] if place.cores else None
    log = place.folder / "go.log"
    return Peer(port, stack.enter_context(running(argv, port=port, log=log, core=core)))


def start_nginx(place: Workplace, stack: ExitStack, upstream: Path) -> Peer | None:
    """Start nginx as a plain proxy; None where there is no nginx."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if nginx is None:
        return None
    port, folder = free_port(), place.folder / "nginx"
    folder.mkdir()
    text = (HERE / "peers" / "nginx.conf.in").read_text()
    names = {"FOLDER": folder, "UPSTREAM": f"unix:{upstream}", "LISTEN": f"127.0.0.1:{port}"}
    for name, value in names.items():
        text = text.replace(f"@{name}@", str(value))
    (folder / "nginx.conf").write_text(text)
    argv = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    core = place.cores[0] if place.cores else None
    log = place.folder / "nginx.log"
    return Peer(port, stack.enter_context(running(argv, port=port, log=log, core=core)))


def start_bare(
    place: Workplace, stack: ExitStack, *, engine: Path, model: Path, args: Mapping[str, str | int]
) -> Peer:
    """Start a llama-server with one model and nothing in front of it."""
    port = free_port()
    words = [word for name, value in args.items() for word in (f"--{name}", str(value))]
    argv = [str(engine), "--model", str(model), "--offline", *words]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    env = {"XDG_CONFIG_HOME": str(place.folder / "empty")}
    log = place.folder / f"bare-{port}.log"
    return Peer(port, stack.enter_context(running(argv, port=port, log=log, env=env)))


def start_router(
    place: Workplace,
    stack: ExitStack,
    *,
    engine: Path,
    models: Mapping[str, Path],
    args: Mapping[str, str | int],
) -> Peer:
    """Start llama.cpp's own router: the same binary without a model, room for one."""
    port = free_port()
    presets = place.folder / f"router-{port}.ini"
    lines = [f"{name} = {value}\n" for name, value in args.items()]
    sections = [f"[{name}]\nmodel = {path}\n{''.join(lines)}" for name, path in models.items()]
    presets.write_text("\n".join(sections))
    argv = [str(engine), "--models-preset", str(presets), "--models-max", "1", "--offline"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--threads-http", "64"]
    env = {"XDG_CONFIG_HOME": str(place.folder / "empty")}
    log = place.folder / f"router-{port}.log"
    return Peer(port, stack.enter_context(running(argv, port=port, log=log, env=env)))
