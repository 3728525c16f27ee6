"""Build the stand-in for the NVIDIA library and drive `devices` on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import needs

HERE = Path(__file__).parent
GIB = 1 << 30
NO_VARIABLES: Mapping[str, str] = {}


def build_library(source: str, target: Path, *flags: str) -> None:
    """Compile a stand-in library; skips the test where there is no C compiler."""
    compiler = needs.C_COMPILER.require()
    command = [compiler, "-shared", "-fPIC", "-O1", *flags, "-o", str(target), str(HERE / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def gpu(uuid: str, bus: str, *, used: int = 0, total: int = 24 * GIB, **keys: object) -> str:
    """Return a line of the script; `bus` is like `0a`."""
    values = {"uuid": uuid, "bus": f"00000000:{bus.upper()}:00.0", "name": "RTX"}
    values |= {"total": str(total), "used": str(used), **{k: str(v) for k, v in keys.items()}}
    return "gpu " + " ".join(f"{key}={value}" for key, value in values.items() if value)


@dataclass
class Answer:
    """What the worker found and what it logged."""

    result: Any
    log: list[str]


class NvmlWorker:
    """`devices` in a process of its own, on a stand-in library whose script tests write."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.script_file = folder / "script"
        self.script()
        env = {name: value for name, value in os.environ.items() if "_VISIBLE_" not in name}
        env |= {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(self.script_file), **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.devices.nvml_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=HERE.parents[1],
            env=env,
            text=True,
        )

    def script(self, *lines: str) -> None:
        """Say what the driver shows from now on."""
        new = self.script_file.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.script_file)

    def devices(
        self,
        *,
        do: str = "devices",
        declared: dict[str, int] | None = None,
        backends: Sequence[str] = ("cuda",),
        root: Path = Path("/"),
        environment: Mapping[str, str] = NO_VARIABLES,
        lists: Sequence[Mapping[str, object]] = (),
    ) -> Answer:
        """Read the devices; the host, always last, is left out."""
        answer = self._ask(
            do=do,
            declared=declared,
            backends=list(backends),
            root=str(root),
            environment=dict(environment),
            lists=list(lists),
        )
        host = answer.result.pop()
        assert host["id"] == "host"
        return answer

    def uuids(self, **environment: str) -> dict[str, str]:
        """Return the visible GPUs: name -> UUID."""
        answer = self.devices(environment=environment)
        return {one["id"]: one["uuid"] for one in answer.result}

    def watch(self, root: Path) -> None:
        """Begin to measure the devices that are there now."""
        self.devices(do="watch", root=root)

    def read(self, *children: int) -> Any:
        """Return a sample: `measurement` and `held`, with string keys for process ids."""
        return self._ask(do="read", children=children).result

    def pool(self, name: str, *children: int) -> tuple[int, int | None, int | None] | None:
        """Return (used, ours, strangers) of a pool in GiB; None if it could not be read."""
        pools = self.read(*children)["measurement"]["pools"]
        if name not in pools:
            return None
        used, ours, strangers = (pools[name][key] for key in ("used", "ours", "strangers"))
        return used // GIB, _gib(ours), _gib(strangers)

    def _ask(self, **asked: object) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the worker died: see its error output"
        return Answer(**json.loads(line))

    def close(self) -> None:
        self._process.communicate(timeout=90)
        assert self._process.returncode == 0


def _gib(size: int | None) -> int | None:
    return None if size is None else size // GIB
