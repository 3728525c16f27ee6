"""Locates each engine that a configuration names, once.

The presets share them: a file with 100 presets and one engine looks for one binary.
"""

from __future__ import annotations

from llamaswap_py.config.forms import EngineChoice, EngineSpec
from llamaswap_py.config.sections import Config, Preset
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.binaries import Engine, locate_engine


class Engines:
    """Locates each engine that a configuration names, once."""

    def __init__(self, config: Config) -> None:
        self._found: dict[EngineSpec, Engine | EngineError] = {}
        presets = [one for one in config.models.values() if one.id not in config.broken]
        needed = [preset for preset in presets if preset.cmd is None]
        for preset in needed:
            self._locate(preset.engine)
        self._default = self._locate(config.engine)
        self._needed = bool(needed)

    @property
    def default(self) -> Engine | None:
        """The engine of the file's top level; raises EngineError when there is none at all.

        Where only the presets' own engines work, the first of those stands for it. None where no
        preset needs one.
        """
        found = [one for one in (self._default, *self._found.values()) if isinstance(one, Engine)]
        if found:
            return found[0]
        if not self._needed:
            return None
        assert isinstance(self._default, EngineError)
        raise self._default

    @property
    def found_ones(self) -> tuple[Engine, ...]:
        """All engines that were found, each once."""
        found = (one for one in self._found.values() if isinstance(one, Engine))
        return tuple({one.path: one for one in found}.values())

    def found(self, preset: Preset) -> Engine | None:
        """Return a preset's engine if it has been located."""
        found = self._found.get(preset.engine)
        return found if isinstance(found, Engine) else None

    def of(self, preset: Preset) -> Engine | EngineError:
        """Return a preset's engine, or why there is none."""
        return self._found[preset.engine]

    def _locate(self, spec: EngineSpec) -> Engine | EngineError:
        if spec not in self._found:
            try:
                self._found[spec] = locate_engine(_as_wanted(spec))
            except EngineError as error:
                self._found[spec] = error
        return self._found[spec]


def _as_wanted(spec: EngineSpec) -> str | dict[str, object]:
    if not isinstance(spec, EngineChoice):
        return spec
    wanted: dict[str, object] = {"build": spec.build, "backend": spec.backend}
    return {key: value for key, value in wanted.items() if value is not None}
