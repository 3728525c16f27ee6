"""Limits on memory, tasks and processor of a child, which its cgroup enforces."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llamaswap_py.children.cgroups import Home
from llamaswap_py.llamacpp.doctor import Check, CheckState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.config.sections import Config, Preset

_REMEDY = "let lswap have cgroups of its own (docs/operating.md, Containment), or remove the key"


_WAYS = {
    "cgroup2": "cgroups of version 2",
    "cgroup1": "cgroups of version 1",
    "": "a keeper process for each child",
}


def examine_containment() -> Check:
    """Return for `doctor` how lswap ends what a child starts, and which limits it can enforce."""
    if sys.platform != "linux":
        return Check(
            "children",
            "containment",
            CheckState.ABSENT,
            "only the process group of a model ends with it",
        )
    home = Home.open()
    way, can = "", frozenset[str]()
    if home is not None:
        way, can = home.way, home.can
        home.close()
    lacks = [name for name in ("tasks_max", "memory_max") if name not in can]
    holds = f"; enforced: {', '.join(sorted(can))}" if can else ""
    lacking = f"; not enforced: {', '.join(lacks)}" if lacks else ""
    detail = f"what a model starts ends with it, by {_WAYS[way]}{holds}{lacking}"
    remedy = "`lswap service install`, or `systemd-run --user --scope -p Delegate=yes lswap up`"
    return Check(
        "children",
        "containment",
        CheckState.OK,
        detail,
        f"to enforce them: {remedy}" if lacks else "",
    )


def limits_of(preset: Preset) -> dict[str, int]:
    """Return the limits of a preset that are set."""
    limits = {"tasks_max": preset.tasks_max, "memory_max": preset.memory_max}
    return {name: value for name, value in limits.items() if value is not None}


def unenforced(config: Config, home: Home | None) -> Iterator[str]:
    """Yield a warning for each limit in the file that the system cannot enforce for this lswap."""
    can = home.can if home is not None else frozenset()
    for preset in config.models.values():
        for name in limits_of(preset):
            if name not in can:
                place = config.where(f"models.{preset.id}.{name}")
                yield f"{place}: the system cannot enforce this limit here - {_REMEDY}"


def unenforced_here(config: Config) -> list[str]:
    """Return the same for an lswap that were started from here, like this process."""
    if not any(map(limits_of, config.models.values())):
        return []
    home = Home.open()
    try:
        return list(unenforced(config, home))
    finally:
        if home is not None:
            home.close()
