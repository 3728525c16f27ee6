"""Run `devices` on the stand-in libraries, as a process of its own: they are loaded only once.

Reads one JSON request a line and answers each with one line: `{"result": …, "log": […]}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamaswap_py.devices import EngineList, read_devices
from llamaswap_py.devices.reader import MachineReader
from llamaswap_py.llamacpp.device_list import ListedDevice


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def main() -> None:
    records = _Records()
    logging.basicConfig(level=logging.INFO, handlers=[records])
    reader: MachineReader | None = None
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        records.lines = []
        if asked["do"] == "read":
            assert reader is not None
            result: Any = asdict(reader.read(0.0, asked["children"]))
        else:
            root = Path(asked["root"])
            devices = read_devices(
                asked["declared"],
                lambda name: 1,
                backends=frozenset(asked["backends"]),
                environment=environment(asked["environment"]),
                lists=[engine_list(one) for one in asked.get("lists", ())],
                root=root,
            )
            result = [asdict(one) for one in devices]
            if asked["do"] == "watch":
                if reader is not None:
                    reader.close()
                reader = MachineReader(devices, root=root)
        print(json.dumps({"result": result, "log": records.lines}, default=str), flush=True)


def engine_list(asked: dict[str, Any]) -> EngineList:
    """Return what an engine lists: `devices` are names, descriptions and bytes."""
    listed = tuple(ListedDevice(name, said, size, size) for name, said, size in asked["devices"])
    return EngineList(asked["view"], asked["view"], environment(asked["environment"]), listed)


def environment(extra: dict[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
    return {**kept, **extra}


if __name__ == "__main__":
    main()
