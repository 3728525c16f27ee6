"""Where servers are run: presets for every purpose, configurations, and the commands."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llamaswap_py.children.cgroups import SWITCH
from tests.fakes import fake_llama_server, recording_child
from tests.real.answers import PATIENCE
from tests.real.harness import Lswap, command_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import TinyModel

Preset = dict[str, Any]

_WEBSOCKET_CHILD = """
import asyncio, http, sys
from websockets.asyncio.server import unix_serve

async def echo(connection):
    async for message in connection:
        await connection.send(message[::-1])

def props(connection, request):
    if request.path == "/props":
        return connection.respond(http.HTTPStatus.OK, '{"total_slots": 1}')

async def main():
    host = sys.argv[sys.argv.index("--host") + 1]
    async with unix_serve(echo, host, process_request=props):
        print('cmd_child_to_router:state:{"state":"ready","payload":{}}', flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # the exit command

asyncio.run(main())
"""


ASKED = "--version | --help | --list-devices"
"""What an engine is asked before it runs a model, as a pattern of the shell."""


@dataclass(frozen=True, slots=True)
class Cli:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(slots=True)
class Lab:
    """Where servers are run: a short folder, the engine, and a writer of tiny models."""

    folder: Path
    engine: str
    write_model: TinyModel
    fakes: int = 0

    def sentence(self, name: str) -> str:
        """Return what the model `name` says to everything."""
        return f"{name} says hello from far away"

    def preset(self, name: str, *, size: str = "100MiB", **keys: Any) -> Preset:
        """Return a preset whose model says its own sentence and stops."""
        path = self.write_model(name, self.sentence(name))
        return {"model": str(path), "memory": {"host": size}, **keys}

    def write_adapter(self) -> Path:
        """Write a LoRA adapter for the presets of `preset` that changes nothing."""
        import gguf
        import numpy as np

        path = self.folder / "adapter.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 1.0)
        for name, shape in (("lora_a", (4, 64)), ("lora_b", (32, 4))):
            writer.add_tensor(f"blk.0.attn_q.weight.{name}", np.zeros(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def write_projector(self) -> Path:
        """Write a projector for the models of `preset`; a picture of 28 by 28 is four tokens."""
        import gguf
        import numpy as np

        path = self.folder / "mmproj-tiny.gguf"
        writer = gguf.GGUFWriter(str(path), "clip")
        writer.add_string("general.type", "mmproj")
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_string("clip.projector_type", "mlp")
        numbers = {"image_size": 28, "patch_size": 14, "embedding_length": 32, "block_count": 1}
        numbers |= {"feed_forward_length": 64, "projection_dim": 64, "attention.head_count": 1}
        for name, value in numbers.items():
            writer.add_uint32(f"clip.vision.{name}", value)
        writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
        for name in ("image_mean", "image_std"):
            writer.add_array(f"clip.vision.{name}", [0.5, 0.5, 0.5])
        shapes: dict[str, tuple[int, ...]] = {
            "v.patch_embd.weight": (32, 3, 14, 14),
            "v.position_embd.weight": (4, 32),
            "v.blk.0.attn_out.weight": (32, 32),
            "v.blk.0.ffn_up.weight": (64, 32),
            "v.blk.0.ffn_down.weight": (32, 64),
            "mm.0.weight": (64, 32),
            "mm.0.bias": (64,),
            "mm.2.weight": (64, 64),
            "mm.2.bias": (64,),
        }
        for name, shape in shapes.items():
            writer.add_tensor(name, np.zeros(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def endless(self, name: str, *, size: str = "100MiB", layers: int = 256, **keys: Any) -> Preset:
        """Return a preset that repeats its sentence for ever, about 450 words a second."""
        text = self.sentence(name) + " "
        path = self.write_model(f"{name}-endless-{layers}", text, loop=True, layers=layers)
        args = {"context-shift": True, "warmup": False, **keys.pop("args", {})}
        return {"model": str(path), "memory": {"host": size}, "args": args, **keys}

    def heavy(self, name: str, *, mib: int, size: str = "100MiB", **keys: Any) -> Preset:
        """Return a preset that reads so many MiB while it loads; about 0.8 s per GiB."""
        path = self.write_model(
            f"{name}-heavy-{mib}", self.sentence(name), layers=4, pad_bytes=mib << 20
        )
        args = {"load-mode": "none", "warmup": False}
        return {"model": str(path), "memory": {"host": size}, "args": args, **keys}

    def fake(self, name: str, *, size: str = "100MiB", **keys: Any) -> Preset:
        """Return a preset of the fake llama-server; its knobs go into `env`."""
        path = self.folder / f"{name}.gguf"
        with path.open("wb") as file:  # so big that what the interpreter reads is no progress
            file.write(b"GGUF")
            file.truncate(4 << 30)
        memory = {"host": size}
        return {"model": str(path), "memory": memory, "engine": self.fake_engine(), **keys}

    def fake_engine(self, *, child_mode: bool = True, wrapper: str = "") -> str:
        """Write an engine that describes itself as the real one does and runs the fake.

        `wrapper` is Python code that runs it, as its arguments say.
        """
        speaks = "cmd_child_to_router:state:" if child_mode else "nothing"
        fake = f"{sys.executable} -SE {fake_llama_server.__file__}"
        if wrapper:
            fake = f'{sys.executable} -SE -c "{wrapper}" {fake}'
        return self._engine(f"# speaks {speaks}", fake)

    def websocket_engine(self) -> str:
        """Write an engine that answers each WebSocket message with the same, backwards."""
        path = self.folder / "websocket_child.py"
        path.write_text(_WEBSOCKET_CHILD)
        return self._engine("# speaks cmd_child_to_router:state:", f"{sys.executable} {path}")

    def recording_engine(self, line: str = "") -> str:
        """Write an engine that writes every byte it gets into the file `tape` of this folder.

        Before it, as the same process, goes a `line` of shell.
        """
        command = f"env LSWAP_TAPE={self.folder}/tape {sys.executable} {recording_child.__file__}"
        ask = f"{ASKED}) ;;"
        line = f'case "$1" in {ask} *) {line or ":"} ;; esac  # speaks cmd_child_to_router:state:'
        return self._engine(line, command)

    def old_engine(self, *lacks: str) -> str:
        """Write an engine that is the real one without child mode, and without more in `--help`.

        Lines of the help that hold a word of `lacks` are left out.
        """
        return self._engine("unset LLAMA_SERVER_ROUTER_PORT", self.engine, lacks)

    def engine_behind(self, line: str) -> str:
        """Write an engine that is the real one, after a line of shell."""
        return self._engine(line, self.engine)

    def engine_with(self, arguments: str) -> str:
        """Write an engine that is the real one, with more arguments."""
        return self._engine("# the real one", f"{self.engine} {arguments}")

    def engine_that_ends_with(self, arguments: str) -> str:
        """Write an engine that is the real one, with arguments that win over all others."""
        command = f"""sh -c 'exec {self.engine} "$@" {arguments}' sh"""
        return self._engine("# speaks cmd_child_to_router:state:", command)

    def held_engine(self, gate: Path) -> str:
        """Write an engine that is the real one, and loads only once the file `gate` exists."""
        wait = f"while ! [ -e {gate} ]; do sleep 0.05; done"
        line = f'case "$1" in {ASKED}) ;; *) {wait} ;; esac'
        return self._engine(line, self.engine)

    def _engine(self, line: str, command: str, lacks: tuple[str, ...] = ()) -> str:
        self.fakes += 1
        path = self.folder / f"llama-server-{self.fakes}"
        hide = "".join(f" | grep -v -e {word}" for word in lacks)
        path.write_text(
            f"#!/bin/sh\n{line}\n"
            f'case "$1" in {ASKED}) {self.engine} "$@" 2>&1 {hide}; exit 0 ;; esac\n'
            f'exec {command} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    def config(self, models: dict[str, Preset], **keys: Any) -> dict[str, Any]:
        """Return a configuration: 200 MiB of host memory, so that two presets of 100 don't fit."""
        memory = {"devices": {"host": "200MiB"}, "margin": "10MiB", "cache_ram": "0MiB"}
        defaults = {"args": {"ctx-size": 512, "parallel": 2, "threads": 1}, "stop_timeout": "5s"}
        return {
            "listen": "127.0.0.1:0",
            "engine": self.engine,
            **keys,
            "memory": {**memory, **keys.get("memory", {})},
            "defaults": {**defaults, **keys.get("defaults", {})},
            "models": models,
        }

    def write_config(self, models: dict[str, Preset], *, name: str = "lswap", **keys: Any) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.config(models, **keys), sort_keys=False))
        return path

    def server(self, config: Path, **env: str) -> Lswap:
        """Return a server of `config` that is not started yet."""
        return Lswap(config, self.environment(env))

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """Return the environment of everything that a test starts."""
        own = {
            name: str(self.folder)
            for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
        }
        foreign = ("LSWAP_", "LLAMA_", "FAKE_")
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(foreign) or k == SWITCH
        }
        return {**inherited, **own, "PYTHONUNBUFFERED": "1", **(extra or {})}

    @asynccontextmanager
    async def lswap(
        self,
        models: dict[str, Preset],
        *,
        name: str = "lswap",
        env: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        **keys: Any,
    ) -> AsyncIterator[Lswap]:
        """Run a server with `models` and more of an environment; `keys` are the file's others.

        `wrapper` is a command that becomes the one behind it.
        """
        server = self.server(self.write_config(models, name=name, **keys), **(env or {}))
        server.wrapper = wrapper
        async with server.running():
            yield server
            await server.stop()

    async def cli(self, *args: str, **env: str) -> Cli:
        """Run `lswap ARGS` to its end."""
        process = await asyncio.create_subprocess_exec(
            *command_line(*args),
            cwd=self.folder,
            env=self.environment(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Cli(process.returncode, out.decode(), err.decode())
