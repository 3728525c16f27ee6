"""Reads a file of simulated models: their memory, load times and slots.

It takes the place of a configuration for questions about sizes alone, like "would 12 GiB more
help?". No model files are needed.

    devices: {GPU0: 24GiB}
    margin: 1GiB
    models:
      chat: {memory: 12GiB, load: 8s, slots: 4}
      big: {memory: [22GiB, 12GiB], load: 12s}   # two variants, the best first
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal

import msgspec

from llamaswap_py.config.yaml_tree import plain_value, read_yaml
from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler.types import Choice, Pool, PoolId, PresetId, PresetPlan
from llamaswap_py.simulator.scenario import SimulatedChild
from llamaswap_py.units import parse_duration, parse_size

SLOTS: Final = 4
"""llama-server's own choice of slots."""
_REMEDY: Final = "docs/scheduling.md, Traces, shows the form of the file"


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    memory: str | list[str]
    load: str | list[str]
    slots: int = SLOTS
    prefer: Literal["fit", "first"] = "fit"
    pin: bool = False
    priority: int = 0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    devices: dict[str, str]
    models: dict[str, _Model]
    margin: str = "1GiB"


@dataclass(frozen=True, slots=True)
class SimulatedModels:
    """The memory pools of a machine, and its models, each with how it loads and serves."""

    pools: dict[PoolId, Pool]
    plans: tuple[tuple[PresetPlan, SimulatedChild], ...]


def parse_models(text: str, name: str = "models") -> SimulatedModels:
    """Return the devices and models of a file; raises ConfigError naming the place.

    A model with several sizes has a variant for each. It may load on any device that can hold it.
    """
    node = read_yaml(text, name)
    try:
        file = msgspec.convert(None if node is None else plain_value(node), _File)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), where=name, remedy=_remedy(str(error))) from None
    margin = _amount(file.margin, parse_size, f"{name}: margin", least=0)
    pools = {
        PoolId(device): Pool(_amount(size, parse_size, f"{name}: devices.{device}"), margin)
        for device, size in file.devices.items()
    }
    if not pools or not file.models:
        raise ConfigError("the file needs devices and models", where=name, remedy=_REMEDY)
    plans = (_plan(one, model, pools, name) for one, model in file.models.items())
    return SimulatedModels(pools, tuple(plans))


def _remedy(said: str) -> str:
    unknown = said.split("`")[1:2] if "unknown field" in said else []
    known = {*_Model.__struct_fields__, *_File.__struct_fields__}
    near = get_close_matches(unknown[0], known, 1) if unknown else []
    return f"did you mean {near[0]!r}?" if near else _REMEDY


def _plan(
    name: str, model: _Model, pools: dict[PoolId, Pool], file: str
) -> tuple[PresetPlan, SimulatedChild]:
    where = f"{file}: models.{name}"
    sizes = [_amount(one, parse_size, f"{where}.memory") for one in _several(model.memory)]
    loads = [_amount(one, parse_duration, f"{where}.load") for one in _several(model.load)]
    if not sizes or len(loads) not in (1, len(sizes)):
        raise ConfigError(
            f"{len(loads)} load times for {len(sizes)} variants",
            where=f"{where}.load",
            remedy="give one time, or one for each size of memory",
        )
    if model.slots < 1:
        raise ConfigError("must be 1 or more", where=f"{where}.slots")
    variants = [str(number) if number else "" for number in range(len(sizes))]
    choices = tuple(
        Choice({pool: size}, devices=(pool,), variant=variant)
        for variant, size in zip(variants, sizes, strict=True)
        for pool in pools
    )
    plan = PresetPlan(
        preset=PresetId(name),
        choices=choices,
        prefer_fit=model.prefer == "fit",
        pin=model.pin,
        priority=model.priority,
    )
    by_variant = dict(zip(variants, loads * len(sizes), strict=False))
    return plan, SimulatedChild(loads[0], model.slots, by_variant)


def _several(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _amount(text: str, parse: Callable[[str], Any], where: str, least: float = 0.001) -> Any:
    try:
        amount = parse(text)
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None
    if amount < least:
        raise ConfigError("must be more than 0", where=where)
    return amount
