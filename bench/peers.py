"""Who takes part: each peer is a proxy in front of the same stub, or of the same tiny models."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.client import post
from bench.peer_option import PeerOption, listener, router_presets, swap_config
from bench.rows import GO, LSWAP, NGINX, ROUTER
from bench.run import Run
from bench.workplace import HERE, BenchError, Workplace, free_port, run_tool, running
from llamaswap_py.endpoint import Endpoint

LSWAP_RELAY = "lswap, one-line scheduler"
DIRECT = "no proxy"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to be measured; `pid` is the process whose CPU counts, None where nobody knows."""

    port: int
    pid: int | None


@dataclass(slots=True)
class Lineup:
    """Who takes part in a table, and who does not, and why."""

    peers: dict[str, Peer] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def others(self, *besides: str) -> list[str]:
        """Return everybody but lswap and those that are named."""
        return [name for name in self.peers if name not in (LSWAP, *besides)]


CONCURRENCY = 1000
"""As many requests as any part opens at once at the stub behind lswap."""


def line_up_before_stub(run: Run, stack: ExitStack, *, relay_alone: bool = False) -> Lineup:
    """Start the stub, and in front of it every peer that this machine has."""
    place, lineup = run.place, Lineup()
    lineup.peers[DIRECT], upstream = start_stub(run, stack)
    for name, start, how in (
        (GO, start_go, "apt-get install golang-go"),
        (NGINX, start_nginx, "apt-get install nginx"),
    ):
        peer = start(place, stack, upstream)
        if peer is None:
            lineup.missing[name] = f"not on this machine ({how})"
        else:
            lineup.peers[name] = peer
    if relay_alone:
        lineup.peers[LSWAP_RELAY] = start_relay_alone(place, stack, upstream)
    model = place.folder / "stub.gguf"
    model.write_bytes(b"GGUF")
    lineup.peers[LSWAP] = start_lswap(
        place,
        stack,
        engine=place.stub,
        models={"stub": model},
        pin=True,
        concurrency=CONCURRENCY,
    )
    _start_further_peers(run, stack, lineup, place.stub, {"stub": model}, {})
    return lineup


def line_up_before_models(
    run: Run,
    stack: ExitStack,
    models: Mapping[str, Path],
    args: Mapping[str, str | int],
    *,
    concurrency: int | None = None,
    policy: Mapping[str, Any] | None = None,
) -> Lineup:
    """Start all peers on the same binary and models, of which one fits in memory."""
    engine, lineup = run.llama_server.path, Lineup()
    own = {name: value for name, value in args.items() if name not in _OWNED}
    lineup.peers[LSWAP] = start_lswap(
        run.place,
        stack,
        engine=engine,
        models=models,
        args=own,
        concurrency=concurrency,
        policy=policy,
    )
    lineup.peers[ROUTER] = start_router(run.place, stack, engine=engine, models=models, args=args)
    _start_further_peers(run, stack, lineup, engine, models, args)
    return lineup


_OWNED = ("cache-ram", "fit", "threads-http")
"""Options that lswap passes itself; the others are given the same."""


def _start_further_peers(
    run: Run,
    stack: ExitStack,
    lineup: Lineup,
    engine: Path,
    models: Mapping[str, Path],
    args: Mapping[str, str | int],
) -> None:
    """Start the further peers, and ask each for an answer of every model."""
    for option in run.further_peers:
        try:
            peer = _start_further_peer(run, stack, option, engine, models, args)
        except (BenchError, OSError) as error:
            lineup.missing[option.name] = " ".join(str(error).split()).rstrip(":")[:200]
            continue
        told = {name: _try(peer, name) for name in models}
        wrong = [f"{said or 'nothing'} for {name}" for name, said in told.items() if said != "200"]
        if wrong:
            lineup.missing[option.name] = f"answered {wrong[0]}"
        else:
            lineup.peers[option.name] = peer


def _start_further_peer(
    run: Run,
    stack: ExitStack,
    option: PeerOption,
    engine: Path,
    models: Mapping[str, Path],
    args: Mapping[str, str | int],
) -> Peer:
    if not option.words:
        return Peer(option.port, listener(option.port))
    port, place = free_port(), run.place
    base = place.folder / f"peer-{port}"
    base.with_suffix(".yaml").write_text(swap_config(engine, models, args))
    base.with_suffix(".ini").write_text(router_presets(models, args))
    argv = option.argv(
        {
            "port": str(port),
            "config": str(base.with_suffix(".yaml")),
            "ini": str(base.with_suffix(".ini")),
            "engine": str(engine),
            "upstream": f"http://127.0.0.1:{run.upstream}",
        }
    )
    stubbed = engine == place.stub and place.cores is not None
    core = place.cores[0] if stubbed and place.cores else None
    env = {"STUB_CPU": str(place.cores[1])} if stubbed and place.cores else {}
    log = base.with_suffix(".log")
    pid = stack.enter_context(running(argv, port=port, log=log, env=env, core=core))
    return Peer(port, pid)


def _try(peer: Peer, model: str) -> str:
    """Return the status of a small answer."""
    ask = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    answer = post(Endpoint(port=peer.port), "/v1/chat/completions", ask, first=b"{", last="}")
    return answer.text[9:12]


def start_stub(run: Run, stack: ExitStack) -> tuple[Peer, Path]:
    """Start the stub upstream; return it and its unix socket."""
    place = run.place
    port, path = run.upstream, place.folder / "stub.sock"
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
    policy: Mapping[str, Any] | None = None,
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
    presets = {name: {"model": str(path), **preset} for name, path in models.items()}
    config.write_text(_lswap_config(port, engine, presets, policy or {}))
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
    port: int, engine: Path, presets: Mapping[str, Any], policy: Mapping[str, Any]
) -> str:
    config = {
        "listen": f"127.0.0.1:{port}",
        "engine": str(engine),
        "memory": {"margin": 0, "cache_ram": 0, "devices": {"host": "8GiB"}},
        "policy": {"max_loaded": 1, **policy},
        "models": presets,
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
    port = free_port()
    folder = place.folder / f"nginx-{port}"
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
    presets.write_text(router_presets(models, args))
    argv = [str(engine), "--models-preset", str(presets), "--models-max", "1", "--offline"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--threads-http", "64"]
    env = {"XDG_CONFIG_HOME": str(place.folder / "empty")}
    log = place.folder / f"router-{port}.log"
    return Peer(port, stack.enter_context(running(argv, port=port, log=log, env=env)))
