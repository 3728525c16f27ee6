"""Turns the devices of a preset into environment variables that hide all others. Pure.

A child that does not see a card opens no context on it, which saves hundreds of MiB per card. It
numbers the cards that it sees from 0; `translate` turns its names back into ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from llamaswap_py.llamacpp.backends import SELECTABLE, Backend
from llamaswap_py.units import HOST

_HOST_BUFFERS: Final = re.compile(r"CPU.*|AMX|BLAS|host|\w+_Host", re.IGNORECASE)


def placement_env(devices: Sequence[str], backend: str, uuids: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a child of `backend` that may use only `devices`.

    `devices` are names like `CUDA1` or `host`. If it is empty, the child chooses among those of
    `uuids`, and numbers them as lswap does. The variables name a GPU by its value in `uuids` (UUID,
    or the driver's number), else by the number in its name.
    """
    kind = SELECTABLE.get(backend)
    if kind is None:
        return {}
    env = dict(kind.order or {})
    names = _visible(devices, kind, uuids)
    if not names and not devices:
        return env
    numbers = [uuids.get(one) or one[len(kind.prefix) :] for one in names]
    return {**env, **_hide_others(kind, numbers)}


def translate(
    name: str, devices: Sequence[str], backend: str, uuids: Mapping[str, str]
) -> str | None:
    """Return our id for the device or buffer that a child calls `name`; None if it has none.

    The other arguments are those `placement_env` was called with for this child. Buffers in host
    memory (`CPU_Mapped`, `AMX`, `CUDA_Host`, …) are `host`; `CUDA_Split` lies on several devices.
    """
    kind = SELECTABLE.get(backend)
    if kind is not None and (found := re.fullmatch(rf"{kind.prefix}(\d+)(_\w+)?", name, re.I)):
        number = int(found[1])
        names = _visible(devices, kind, uuids)
        if names:
            return names[number] if number < len(names) else None
        return None if devices else f"{kind.prefix}{number}"
    return HOST if _HOST_BUFFERS.fullmatch(name) else None


def _visible(devices: Sequence[str], kind: Backend, uuids: Mapping[str, str]) -> list[str]:
    """Return our names of what the child sees, in its order."""
    wanted = devices or sorted(uuids, key=lambda name: (len(name), name))
    if not devices and kind.name == "vulkan":
        return []  # its numbers are a guess; a number beyond the last GPU stops the child
    return [name for name in wanted if re.fullmatch(rf"{kind.prefix}\d+", name, re.IGNORECASE)]


def _hide_others(kind: Backend, shown: Sequence[str]) -> dict[str, str]:
    """Return the variables that leave only `shown` visible, and override those we inherited."""
    env = {kind.variable: ",".join(shown) or kind.hides_all}
    if kind.second_variable:
        again = ",".join(str(number) for number in range(len(shown)))
        env[kind.second_variable] = again or kind.hides_all
    return env
