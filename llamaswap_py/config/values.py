"""The values of the configuration that Python has no type for."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Argument: TypeAlias = bool | int | float | str | tuple[bool | int | float | str, ...]
"""The value of one llama-server option; a tuple repeats the option."""

Backend: TypeAlias = Literal["cpu", "cuda", "rocm", "vulkan", "metal"]

HOST = "host"
"""The device id of main memory."""


class EngineChoice(msgspec.Struct, frozen=True):
    """Which of the installed llama-servers: a build number, a backend, or both."""

    build: int | None = None
    backend: Backend | None = None


EngineSpec: TypeAlias = str | EngineChoice
"""`auto`, the absolute path of a llama-server, or a choice among the installed ones."""


class Filters(msgspec.Struct, frozen=True):
    """What is changed in the JSON of a request, top-level members only.

    `set` overrides, `default` fills in, `strip` takes out. `per_name` does so besides for requests
    that use one of its names, each of which means the preset.
    """

    set: dict[str, Any] = {}
    default: dict[str, Any] = {}
    strip: tuple[str, ...] = ()
    per_name: dict[str, Filters] = {}


class PerDevice(msgspec.Struct, frozen=True):
    """A size in bytes for every device, some of them named."""

    default: int
    devices: dict[str, int] = {}

    def of(self, device: str) -> int:
        """Return the size for `device`, in bytes."""
        return self.devices.get(device, self.default)
