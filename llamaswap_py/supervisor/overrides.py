"""Other arguments for a model until it is unloaded, as an administrator asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from llamaswap_py.config.preset import Preset
from llamaswap_py.config.records import Config
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.options import PATH_LISTS, PATH_OPTIONS, Argument, long_name
from llamaswap_py.scheduler import events as ev
from llamaswap_py.supervisor.prepare import Engines, Prepared, prepare

if TYPE_CHECKING:
    from llamaswap_py.supervisor.supervisor import Supervisor

# What --help shows for the value of an option that names a file or a folder.
_PATH_HINTS: Final = ("FNAME", "FILE", "PATH", "DIR")


_Scalar: TypeAlias = bool | int | float | str


class Overrides:
    """The presets that run with other arguments than the file's."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._originals: dict[str, Prepared] = {}

    async def load(self, preset: str, args: Mapping[str, Argument]) -> None:
        """Load a preset with `args` over its own; raises ApiError when they, or the load, fail.

        What runs of it drains meanwhile. A failed load leaves the file's arguments in place.
        """
        supervisor = self._supervisor
        one = await self._prepare(preset, args)
        if one.problems:
            what = "; ".join(f"{each.message} - {each.remedy}" for each in one.problems)
            raise ApiError("bad_request", f"these args do not work: {what}", param="args")
        self._originals.setdefault(preset, supervisor.prepared[preset])
        self._use(preset, one)
        try:
            await supervisor.load(preset)
        except BaseException:
            if supervisor.prepared.get(preset) is one:  # else somebody else's args count by now
                self.forget(preset)
            raise

    async def _prepare(self, preset: str, args: Mapping[str, Argument]) -> Prepared:
        """Prepare the preset as the file has it at the end, not at the beginning."""
        supervisor = self._supervisor
        while (own := supervisor.config.models.get(preset)) is not None:
            if own.cmd is not None:
                message = f"{preset} is not a llama-server: its cmd is all that it is told"
                raise ApiError("bad_request", message, param="args")
            _refuse_paths(supervisor.prepared[preset], args)
            models = {preset: _with_args(own, args)}
            config = msgspec.structs.replace(supervisor.config, models=models)
            prepared = await asyncio.to_thread(_prepare, config, supervisor)
            if supervisor.config.models.get(preset) == own:
                return prepared[preset]
        raise ApiError("model_not_found", f"model {preset!r} was taken out of the file meanwhile")

    def forget(self, preset: str) -> None:
        """Go back to what the file says."""
        original = self._originals.pop(preset, None)
        if original is not None and preset in self._supervisor.prepared:
            self._use(preset, original)

    def keep(self, prepared: dict[str, Prepared], old: Config, new: Config) -> None:
        """Carry overrides over a reload that left their presets alone."""
        for name in list(self._originals):
            if name in prepared and old.models.get(name) == new.models[name]:
                self._originals[name] = prepared[name]
                prepared[name] = self._supervisor.prepared[name]
            else:
                del self._originals[name]

    def _use(self, preset: str, prepared: Prepared) -> None:
        supervisor = self._supervisor
        supervisor.prepared[preset] = prepared
        supervisor.estimating.forget((preset,))
        plans = tuple(one.plan for one in supervisor.prepared.values())
        supervisor.feed(ev.PresetsChanged(plans))


def _prepare(config: Config, supervisor: Supervisor) -> dict[str, Prepared]:
    return prepare(config, Engines(config), supervisor.devices)


def _with_args(preset: Preset, args: Mapping[str, Argument]) -> Preset:
    """Return the preset with `args` over its own, and over those of its variants."""
    variants = tuple(
        msgspec.structs.replace(
            one, args={name: value for name, value in one.args.items() if name not in args}
        )
        for one in preset.variants
    )
    return msgspec.structs.replace(preset, args={**preset.args, **args}, variants=variants)


def _refuse_paths(prepared: Prepared, args: Mapping[str, Argument]) -> None:
    """Only the file says which files of this machine are read."""
    options = {} if prepared.engine is None else prepared.engine.options
    for name in args:
        known = options.get(f"--{name}")
        hint = "" if known is None else known.hint.upper()
        if name in PATH_OPTIONS or name in PATH_LISTS or any(one in hint for one in _PATH_HINTS):
            raise ApiError(
                "bad_request",
                f"args.{name} names a file or a folder",
                remedy="only the configuration may say which",
                param=f"args.{name}",
            )


def read_args(given: Mapping[str, _Scalar | list[_Scalar]]) -> dict[str, Argument]:
    """Return options by their long names, as `args` of the file has them; raises ApiError."""
    args: dict[str, Argument] = {}
    for key, value in given.items():
        name = long_name(key)
        if name in args:
            raise ApiError("bad_request", f"args gives {name} twice", param=f"args.{key}")
        args[name] = tuple(value) if isinstance(value, list) else value
    return args
