"""The key `memory`: what may be used of each device, and what host memory holds of files."""

from __future__ import annotations

from typing import Annotated, Literal

from llamaswap_py.config.fields import Record, key, plain
from llamaswap_py.config.forms import DURATION, SIZE, or_null
from llamaswap_py.config.keep_kv import KeepKv
from llamaswap_py.config.places import BUDGETS, MARGIN
from llamaswap_py.config.values import PerDevice
from llamaswap_py.units import GIB


class Memory(Record, frozen=True):
    """What may be used of each device."""

    margin: Annotated[
        PerDevice,
        key(
            "Left free on every device, always; or per device (1GiB on those not named).",
            MARGIN,
            "2GiB",
            {"CUDA0": "2GiB", "host": "4GiB"},
        ),
    ] = PerDevice(GIB)
    devices: Annotated[
        dict[str, int] | None,
        key(
            "How much memory each device has: auto asks the machine; a mapping declares it "
            "(containers, WSL, tests).",
            BUDGETS,
            {"CUDA0": "24GiB", "host": "64GiB"},
        ),
    ] = None
    settle: Annotated[
        float,
        key("How long a stopped child's memory may take to show up as free.", DURATION, "10s"),
    ] = 5.0
    cache_ram: Annotated[
        int,
        key(
            "llama-server's prompt cache, per child, charged to host; 0 turns it off "
            "(llama-server's own default is 8 GiB).",
            SIZE,
            "4GiB",
        ),
    ] = GIB
    read_ahead: Annotated[
        Literal["auto", "off"],
        plain(
            "auto: read the files of a model that waits for memory into the page cache, as far as "
            "free host memory goes, until its load begins.",
            "off",
        ),
    ] = "auto"
    host_cache: Annotated[
        int | None,
        key(
            "Most bytes of model files that `keep_in_ram` keeps in the page cache; null: as much "
            "as host memory has free.",
            or_null(SIZE),
            "32GiB",
        ),
    ] = None
    keep_kv: Annotated[KeepKv, plain("What `keep_kv` of the presets may take.")] = KeepKv()
