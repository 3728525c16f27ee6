"""A card of NVIDIA for a measurement: an engine's name of it, what NVML counts, and lswap on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.workplace import BenchError, Workplace, free_port, running
from llamaswap_py.devices import EngineList, read_devices
from llamaswap_py.devices.nvml import Nvml, NvmlError, NvmlMeter
from llamaswap_py.llamacpp.binaries import Engine, locate_engine
from llamaswap_py.llamacpp.device_query import query_devices
from llamaswap_py.llamacpp.install import find_script
from llamaswap_py.llamacpp.paths import engines_folder

BACKEND = "CUDA"
_PATIENCE = 120.0
_SAMPLE = 0.05


@dataclass(frozen=True, slots=True)
class Card:
    """A card under the engine's name; NVML finds it by `meter`."""

    engine: Engine
    name: str
    description: str
    total: int
    uuid: str
    meter: NvmlMeter
    nvml: Nvml = field(default_factory=Nvml, compare=False)

    def used(self) -> int:
        """Return the bytes in use by everybody. Raises BenchError."""
        try:
            return self.nvml.memory(self.meter)[1]
        except NvmlError as error:
            raise BenchError(f"NVML does not measure {self.name}: {error}") from error

    def held(self, pid: int) -> int | None:
        """Return the bytes that NVML counts for a process; None if the driver does not tell."""
        try:
            return self.nvml.processes(self.meter).get(pid)
        except NvmlError:
            return None


def cuda_engine(asked: str | None, limit: float) -> Engine:
    """Return the engine that is asked for, an installed one with CUDA, or a new one.

    A build has `limit` seconds. The script goes on from there when it is started again.
    """
    if asked is not None:
        return locate_engine(asked)
    if (found := _installed()) is None:
        _build(limit)
        found = _installed()
    if found is None:
        raise BenchError("no engine with CUDA", remedy="lswap engine build --backend cuda")
    return locate_engine(str(found))


def _installed() -> Path | None:
    there = sorted(engines_folder().glob(f"*{BACKEND.lower()}*/bin/llama-server"))
    return there[-1] if there else None


def _build(limit: float) -> None:
    command = ["bash", str(find_script()), "--backend", BACKEND.lower()]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=limit, check=True)
    except subprocess.TimeoutExpired as error:
        text = f"the build of an engine was not done in {limit:.0f} s"
        raise BenchError(text, remedy="build it before: lswap engine build") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(command)} failed: {error.returncode}") from error


def find_card(engine: Engine, asked: str | None) -> Card:
    """Return the card that is asked for, else the engine's first one of CUDA. Raises LswapError."""
    listed = query_devices(engine.path, os.environ)
    lists = [EngineList("bench", engine.backend, os.environ, listed)]
    found = read_devices(
        None, lambda _: 0, backends=frozenset(), environment=os.environ, lists=lists
    )
    for one in found:
        if one.id == asked or (asked is None and one.id.startswith(BACKEND)):
            if not isinstance(one.meter, NvmlMeter) or not one.uuid:
                raise BenchError(f"NVML does not know {one.id} ({one.description})")
            return Card(engine, one.id, one.description, one.total, one.uuid, one.meter)
    names = ", ".join(one.name for one in listed) or "none"
    raise BenchError(f"{engine.path} has no device {asked or BACKEND}; it lists: {names}")


# lswap on it


@dataclass(frozen=True, slots=True)
class Lswap:
    """A running `lswap up` and a client of it."""

    client: httpx.Client

    def state(self) -> Any:
        return self.client.get("/lswap/v1/state").json()

    def ask(self, model: str, *, tokens: int = 16) -> float:
        """Let a model generate so many tokens; return how many it made in a second."""
        asked = {"model": model, "prompt": [1, 2, 3], "n_predict": tokens, "ignore_eos": True}
        answer = self.client.post("/completion", json=asked)
        if answer.status_code != 200:
            raise BenchError(f"{model} answered {answer.status_code}: {answer.text[:300]}")
        return float(answer.json()["timings"]["predicted_per_second"])

    def decisions(self, kind: str) -> list[str]:
        """Return the reasons of all decisions of a kind."""
        said = self.client.get("/lswap/v1/decisions").json()["decisions"]
        return [one["reason"] for one in said if one["kind"] == kind]

    def until(self, what: str, holds: Any, limit: float = _PATIENCE) -> float:
        """Wait until the state is so; return the seconds it took. Raises BenchError."""
        began = time.monotonic()
        while not holds(self.state()):
            if time.monotonic() > began + limit:
                raise BenchError(f"within {limit:.0f} s this did not happen: {what}")
            time.sleep(_SAMPLE)
        return time.monotonic() - began


def start_lswap(
    place: Workplace,
    stack: ExitStack,
    card: Card,
    models: Mapping[str, Path],
    memory: Mapping[str, Any],
) -> Lswap:
    """Start `lswap up` with these models, each wholly on the card; it ends with the stack."""
    port = free_port()
    config = place.folder / f"lswap-{port}.yaml"
    args = {"ctx-size": 512, "parallel": 1, "n-gpu-layers": 99}
    said = {
        "listen": f"127.0.0.1:{port}",
        "engine": str(card.engine.path),
        "memory": {"cache_ram": 0, **memory},
        "models": {
            name: {"model": str(path), "device": card.name, "args": args}
            for name, path in models.items()
        },
    }
    config.write_text(json.dumps(said))
    folders = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    argv = [sys.executable, "-m", "llamaswap_py", "up", str(config)]
    env = dict.fromkeys(folders, str(place.folder / f"state-{port}"))
    for folder in {*env.values()}:
        Path(folder).mkdir(mode=0o700)
    log = place.folder / f"lswap-{port}.log"
    stack.enter_context(running(argv, port=port, log=log, env=env))
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE, trust_env=False)
    return Lswap(stack.enter_context(client))


@contextmanager
def sampled(card: Card) -> Iterator[list[int]]:
    """Read the card's use all the time while the block runs, into the list."""
    seen: list[int] = [card.used()]
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(_SAMPLE):
            seen.append(card.used())

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield seen
    finally:
        ended.set()
        reading.join()
