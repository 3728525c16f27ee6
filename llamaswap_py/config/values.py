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


PORT = "{port}"
"""What stands in a command for the port to listen on."""
SOCKET = "{socket}"
"""What stands in a command for the path of the unix socket to listen on."""


class Command(msgspec.Struct, frozen=True):
    """Another program than llama-server: its words, and the folder it runs in."""

    words: tuple[str, ...]
    dir: str

    @property
    def takes_socket(self) -> bool:
        """Whether it listens on a unix socket rather than a port."""
        return any(SOCKET in word for word in self.words)


class Ready(msgspec.Struct, frozen=True):
    """How a program shows that it serves: GET `http` answers 2xx, or a `line` of its output.

    The line contains that text, or has a match of it as a regular expression.
    """

    http: str | None = None
    line: str | None = None


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
