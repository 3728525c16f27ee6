"""Finds the devices of a configuration: asks each engine for its own, in each environment.

An engine is asked at the start, and again after a change of its binary, of its environment or of
the cards, because each time it opens a context on every card.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.argv import build_args
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.devices import Device, EngineList, read_devices
from llamaswap_py.devices.cards import Cards
from llamaswap_py.devices.host import ROOT
from llamaswap_py.devices.placement import listing_env
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.backends import NAMES, SELECTABLE
from llamaswap_py.llamacpp.device_list import OPTION
from llamaswap_py.llamacpp.device_query import query_devices
from llamaswap_py.llamacpp.rpc_connect import START_IT
from llamaswap_py.supervisor.device_views import View, view_of
from llamaswap_py.supervisor.preset_servers import ServerTries
from llamaswap_py.supervisor.rooms import with_least_margins
from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from llamaswap_py.config.sections import Config, Memory, Preset
    from llamaswap_py.llamacpp.binaries import Engine
    from llamaswap_py.llamacpp.device_list import ListedDevice
    from llamaswap_py.supervisor.located_engines import Engines

_log: Final = logging.getLogger("lswap.devices")


@dataclass(slots=True)
class DeviceLists:
    """What the engines have listed so far; each is asked once, until a change outdates its list."""

    _known: dict[tuple[object, ...], tuple[ListedDevice, ...]] = field(default_factory=dict)
    _last: dict[View, tuple[ListedDevice, ...]] = field(default_factory=dict)

    def of(
        self, config: Config, engines: Engines, in_use: frozenset[str] = frozenset()
    ) -> tuple[Device, ...]:
        """Return the devices of a configuration, the host last. Blocks.

        RPC servers that are `in_use` serve no other client: what the engine listed before counts.
        """
        return self.find(config.memory, views_of(config, engines), in_use=in_use)

    def find(
        self,
        memory: Memory,
        views: Iterable[View],
        backends: frozenset[str] = frozenset(),
        in_use: frozenset[str] = frozenset(),
        root: Path = ROOT,
    ) -> tuple[Device, ...]:
        """Return the devices that engines see, the host last. Blocks.

        `backends` are those of engines that are not there to be asked.
        """
        cards, tries = Cards(root), ServerTries()
        lists: list[EngineList] = []
        silent = set(backends)
        for view in dict.fromkeys(views):
            listed = self._ask(view, cards, in_use, tries)
            if listed is None:
                silent.add(view.engine.backend)
            else:
                lists.append(listed)
        found = read_devices(
            memory.devices,
            memory.margin.of,
            backends=frozenset(silent),
            environment=os.environ,
            lists=lists,
            cards=cards,
            root=root,
        )
        return with_least_margins(found) if memory.margin.may_yield else found

    def _ask(
        self, view: View, cards: Cards, in_use: frozenset[str], tries: ServerTries
    ) -> EngineList | None:
        """Return the list of an engine; None, with a line in the log, if it cannot be had."""
        engine = view.engine
        if OPTION not in engine.help_text:
            return None
        own = dict(view.own_env)
        kind = SELECTABLE.get(engine.backend)
        known = cards.of(kind.prefix, os.environ) if kind is not None else []
        uuids = {one.id: one.uuid for one in known if one.uuid is not None}
        env = {**os.environ, **own, **listing_env(engine.backend, uuids, own)}
        status = engine.path.stat()
        now = (view, status.st_mtime_ns, status.st_size, cards.identities(engine.backend))
        listed = self._known.get(now)
        if listed is None and not in_use.isdisjoint(view.rpc):
            listed = self._last.get(view)  # it would wait for the model that uses the server
            if listed is None:
                text = "%s: its devices are not known before the RPC server %s is free"
                _log.warning(text, engine.path, " or ".join(in_use.intersection(view.rpc)))
                return None
        elif listed is None:
            try:
                listed = _query(view, env, tries)
            except EngineError as error:  # a reload asks again
                _log.warning("%s; lswap counts the cards that the drivers know instead", error)
                return None
            self._known[now] = self._last[view] = listed
        return EngineList(view.key, engine.backend, env, listed, view.rpc)


def _query(view: View, env: Mapping[str, str], tries: ServerTries) -> tuple[ListedDevice, ...]:
    """Ask an engine, unless one of its RPC servers is known to be gone; raises EngineError."""
    for endpoint in view.rpc:
        if reason := tries.failure(endpoint):
            raise EngineError(reason, remedy=START_IT)
    return query_devices(view.engine.path, env, view.rpc)


def find_devices(config: Config, engines: Engines) -> tuple[Device, ...]:
    """Return the devices of a configuration, the host last. Blocks."""
    return DeviceLists().of(config, engines)


def devices_for(engine: Engine | None, memory: Memory) -> tuple[Device, ...]:
    """Return the devices where there are no presets yet; without an engine, what drivers know."""
    if engine is None:
        return DeviceLists().find(memory, (), frozenset(NAMES))
    return DeviceLists().find(memory, [View(engine)])


def unlisted(config: Config, devices: Iterable[Device]) -> tuple[str, ...]:
    """Return a warning for each declared device that no engine lists, with its place.

    A program (`cmd`) that names memory there may use it. Without a list nothing is known.
    """
    programs = [one for one in config.models.values() if one.cmd is not None]
    named = {name for one in programs for name in one.memory or ()}
    found = list(devices)
    listed = [one.id for one in found if one.seen]
    if HOST not in listed:
        return ()
    where, sees = config.where("memory.devices"), ", ".join(one for one in listed if one != HOST)
    return tuple(
        f"{where}: {one.id} is declared, but no engine lists it, so no llama-server can use it - "
        f"take {one.id} out, or use an engine that has it (listed: {sees or 'no device'})"
        for one in found
        if one.source == "declared"
        and not (one.id == HOST or one.seen or one.meter is not None or one.id in named)
    )


def views_of(config: Config, engines: Engines) -> Iterator[View]:
    """Yield each engine alone, then as presets with variables or endpoints of their own see it."""
    for engine in engines.found_ones:
        yield View(engine)
    for preset in config.models.values():
        own = None if preset.id in config.broken else engines.found(preset)
        if own is None or preset.cmd is not None:
            continue
        for way in variant_presets(preset):
            args = build_args(way, config, own.options) if _has_endpoints(way) else ()
            yield view_of(own, way.env, args)


def _has_endpoints(preset: Preset) -> bool:
    return "rpc" in preset.args or "--rpc" in preset.extra
