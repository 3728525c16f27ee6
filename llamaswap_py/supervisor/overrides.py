"""Overrides: other arguments for one model until it is unloaded, as an administrator asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import msgspec

from llamaswap_py.config.preset import Preset
from llamaswap_py.config.sections import Config
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.option_values import token_count
from llamaswap_py.llamacpp.options import Argument, long_name
from llamaswap_py.llamacpp.path_options import PATH_LISTS, PATH_OPTIONS
from llamaswap_py.supervisor.prepare import Prepared, Presets

# What --help shows for the value of an option that names a file or a folder.
_PATH_HINTS: Final = ("FNAME", "FILE", "PATH", "DIR")


_Scalar: TypeAlias = bool | int | float | str


class Overrides:
    """The presets that run with other arguments than the file's.

    `load` loads a preset and waits until it is ready; `changed` is called with a preset whose
    arguments are others from now on.
    """

    def __init__(
        self,
        presets: Presets,
        load: Callable[[str], Awaitable[None]],
        changed: Callable[[str], None],
    ) -> None:
        self._presets = presets
        self._load = load
        self._changed = changed
        self._originals: dict[str, Prepared] = {}

    async def load(self, preset: str, args: Mapping[str, Argument]) -> None:
        """Load a preset with `args` over its own; raises ApiError when they, or the load, fail.

        What runs of it drains meanwhile. A failed load leaves the file's arguments in place.
        """
        prepared = self._presets.prepared
        one = await self._prepare(preset, args)
        if one.problems:
            what = "; ".join(f"{each.message} - {each.remedy}" for each in one.problems)
            raise ApiError("bad_request", f"these args do not work: {what}", param="args")
        self._originals.setdefault(preset, prepared[preset])
        self._use(preset, one)
        try:
            await self._load(preset)
        except BaseException:
            if prepared.get(preset) is one:  # else newer args apply by now
                self.reset(preset)
            raise

    async def _prepare(self, preset: str, args: Mapping[str, Argument]) -> Prepared:
        """Prepare the preset as the file has it at the end, not at the beginning."""
        presets = self._presets
        while (own := presets.config.models.get(preset)) is not None:
            if own.cmd is not None:
                message = f"{preset} is not a llama-server: its cmd is all that it is told"
                raise ApiError("bad_request", message, param="args")
            _refuse_paths(presets.prepared[preset], args)
            prepared = await presets.prepare(_with_args(own, args))
            if presets.config.models.get(preset) == own:
                return prepared
        raise ApiError("model_not_found", f"model {preset!r} was taken out of the file meanwhile")

    def reset(self, preset: str) -> None:
        """Go back to what the file says."""
        original = self._originals.pop(preset, None)
        if original is not None and preset in self._presets.prepared:
            self._use(preset, original)

    def carry_over(self, prepared: dict[str, Prepared], new: Config) -> None:
        """Carry overrides over a reload that leaves their presets alone."""
        old = self._presets.config
        for name in list(self._originals):
            if name in prepared and old.models.get(name) == new.models[name]:
                self._originals[name] = prepared[name]
                prepared[name] = self._presets.prepared[name]
            else:
                del self._originals[name]

    def _use(self, preset: str, prepared: Prepared) -> None:
        self._presets.prepared[preset] = prepared
        self._changed(preset)


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
        args[name] = tuple(value) if isinstance(value, list) else token_count(name, value)
    return args
