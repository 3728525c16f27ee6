"""The programs that presets name with `cmd`: where they are, and how they run.

A preset with such a program has no engine that could tell this.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence

from llamaswap_py.children import Program
from llamaswap_py.config.argv import PresetProblem
from llamaswap_py.config.sections import Config, Preset
from llamaswap_py.devices import Device, placement_env
from llamaswap_py.llamacpp.backends import SELECTABLE


def find_program(preset: Preset) -> str | None:
    """Return the path of a preset's program; None if it cannot be run."""
    assert preset.cmd is not None
    return _found(preset, preset.cmd.words[0])


def _found(preset: Preset, name: str) -> str | None:
    return shutil.which(name, path=preset.env.get("PATH", os.environ.get("PATH")))


def program_problems(preset: Preset, config: Config) -> list[PresetProblem]:
    """Return why a preset's program, or what stops it, cannot be run."""
    assert preset.cmd is not None
    programs = {"cmd": preset.cmd.words[0], "stop_cmd": next(iter(preset.stop_cmd), "")}
    return [
        PresetProblem(preset.id, config.where(f"models.{preset.id}.{key}"), *_fault(name))
        for key, name in programs.items()
        if name and _found(preset, name) is None
    ]


def _fault(name: str) -> tuple[str, str]:
    """Return why a program cannot be run, and the remedy."""
    if "/" not in name:
        return f"there is no program {name} on the PATH", "install it, or write its path"
    if os.path.isfile(name):
        return f"{name} cannot be executed", f"chmod +x {name}"
    return f"{name}: there is no such program", "check the path"


def program_env(chosen: Sequence[str], devices: Iterable[Device]) -> dict[str, str]:
    """Return the variables that keep a program to `chosen`, whichever backend it has.

    Without devices it sees what lswap sees.
    """
    uuids = {one.id: one.uuid for one in devices if one.uuid is not None}
    env: dict[str, str] = {}
    for backend in SELECTABLE if chosen else ():
        env |= placement_env(chosen, backend, uuids)
    return env


def program_of(preset: Preset) -> Program:
    """Return how a preset's program shows that it serves, and where it runs."""
    assert preset.cmd is not None
    ready, cmd = preset.ready, preset.cmd
    return Program(ready.http, ready.line, cmd.dir, preset.stop_cmd, preset.served_by)


def port_text(preset: Preset, *, can_tell: bool) -> str:
    """Say which processes may hold a program's port; `can_tell`: the system shows it."""
    if preset.cmd is None or preset.cmd.takes_socket:
        return ""
    if not can_tell:
        return "lswap does not check who holds its port: this system does not show it"
    if preset.served_by == "anyone":
        return "lswap does not check who holds its port (served_by: anyone)"
    others = ", root or the user of lswap" if preset.served_by == "container" else ""
    return (
        f"its port has to be held by cmd or what it starts{others} (served_by: {preset.served_by})"
    )
