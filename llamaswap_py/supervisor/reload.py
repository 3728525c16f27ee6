"""Applies a changed configuration while lswap serves: unchanged presets stay untouched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

import msgspec

from llamaswap_py.config.discovery import Folder
from llamaswap_py.config.edit import remove_preset
from llamaswap_py.config.load import COMMAND_LINE, Origin
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.sections import Config
from llamaswap_py.config.warnings import skipped_files
from llamaswap_py.config.yaml_tree import join_errors
from llamaswap_py.devices import with_gone
from llamaswap_py.errors import ConfigError, LswapError
from llamaswap_py.snapshot import ReloadReport
from llamaswap_py.supervisor.device_lists import unlisted
from llamaswap_py.supervisor.located_engines import Engines
from llamaswap_py.supervisor.prepare import Prepared, is_mended, prepare
from llamaswap_py.supervisor.preset_servers import ServerTries
from llamaswap_py.tasks.threads import Workers
from llamaswap_py.tasks.tick import BEAT, until_beat

if TYPE_CHECKING:
    from llamaswap_py.devices import Device
    from llamaswap_py.supervisor.supervisor import Supervisor

_Found = TypeVar("_Found")
_Looks: TypeAlias = tuple[tuple[int, int, int] | None, ...]
_log: Final = logging.getLogger("lswap")
_FOLDERS_EVERY: Final = 2
"""Every how many beats the folders of models are looked into: that takes a thread."""
_FIXED: Final = (
    *("listen", "allow_unauthenticated", "allowed_hosts", "cors", "memory", "policy", "log"),
    "capture",
)
"""Keys that a running lswap has built itself upon: a change of them waits for a restart."""


class Reloader:
    """Watches where a configuration comes from, and applies it when it changes or is asked to.

    `also` reads what else comes from files, and returns what takes that over; `during` makes the
    context that each reload runs in. `find` finds the devices anew, and leaves alone the RPC
    servers in use; without `find` the devices stay. Making one looks at the files, which may block.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        origin: Origin,
        also: Callable[[Config], Awaitable[Callable[[], None]]] | None = None,
        during: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        find: Callable[[Config, Engines, frozenset[str]], tuple[Device, ...]] | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._origin = origin
        self._also = also
        self._during = during
        self._find = find
        self._one_at_a_time = asyncio.Lock()
        self._seen = self._looks()
        self._models = supervisor.config.folders

    async def watch(self) -> None:
        """Reload whenever a file has changed, until cancelled.

        A model that comes or goes counts once two looks in a row agree: it may still be copied.
        """
        loop, before = asyncio.get_running_loop(), self._models
        with (
            Scout[tuple[Folder, ...]]() as scout,
            Scout[bool]() as mended,
            Scout[_Looks]() as files,
        ):
            while True:
                await asyncio.sleep(until_beat(loop.time()))
                if (looks := files.found()) is not None and looks != self._seen:
                    await self.catch_up()
                files.send(self._looks)
                if mended.found():
                    await self.try_reload("what kept a model from working has changed")
                if (now := scout.found()) is not None:
                    if now == before and now != self._models:
                        self._models = now
                        await self.try_reload("the folders of models changed")
                    before = now
                folders = self._supervisor.config.folders
                if folders and round(loop.time() / BEAT) % _FOLDERS_EVERY:
                    scout.send(partial(scan_folders, folders))
                if broken := [one for one in self._supervisor.prepared.values() if one.problems]:
                    in_use = self._supervisor.scheduler.state.servers_in_use()
                    mended.send(partial(_any_mended, broken, self._supervisor.config, in_use))

    async def try_reload(self, why: str) -> None:
        """Reload; what is wrong with the file is logged, and nothing changes."""
        _log.info("reading the configuration (%s) again: %s", self._origin.name, why)
        with contextlib.suppress(LswapError):
            await self.reload()

    async def reload(self) -> ReloadReport:
        """Apply the file as it is now; a wrong one raises ConfigError and changes nothing."""
        async with self._one_at_a_time:
            with self._during():
                return await self._reload()

    async def _reload(self) -> ReloadReport:
        self._seen = await asyncio.to_thread(self._looks)
        supervisor = self._supervisor
        if self._also is not None:
            # Whatever is wrong with the file: a key that was revoked opens nothing from now on.
            with contextlib.suppress(LswapError):
                (await self._also(supervisor.config))()
        try:
            config = await asyncio.to_thread(self._origin.read)
            _refuse_newly_broken(config, supervisor.config)
            self._models = config.folders
            config, waits = _with_fixed(config, supervisor.config)
            in_use = supervisor.scheduler.state.servers_in_use()
            devices, prepared = await asyncio.to_thread(self._made_ready, config, in_use)
            also = await self._also(config) if self._also is not None else None
        except LswapError as error:
            _log.error("the file is not taken over, what was loaded serves on: %s", error)
            raise
        if also is not None:
            also()
        for line in skipped_files(config):
            if line not in skipped_files(supervisor.config):
                _log.warning("%s", line)
        for line in unlisted(config, devices):
            if line not in unlisted(supervisor.config, supervisor.devices):
                _log.warning("%s", line)
        if devices != supervisor.devices:
            supervisor.use_devices(devices)
        changes = supervisor.adopt(config, prepared)
        report = ReloadReport(changes.added, changes.removed, changes.changed, waits)
        _say(report)
        for name in (*report.added, *report.changed):
            for problem in prepared[name].problems:
                _log.warning("%s cannot run: %s", name, problem)
        supervisor.event_log.publish("reload", report)
        return report

    def _made_ready(
        self, config: Config, in_use: frozenset[str]
    ) -> tuple[tuple[Device, ...], dict[str, Prepared]]:
        """Return the devices that there are now, and the presets made ready to run on them."""
        engines, devices = Engines(config), self._supervisor.devices
        if self._find is not None:
            devices = with_gone(self._find(config, engines, in_use), devices)
        return devices, prepare(config, engines, devices, in_use)

    async def check(self) -> None:
        """Raise ConfigError if the file is wrong as it is; changes nothing."""
        await asyncio.to_thread(self._origin.read)

    async def catch_up(self) -> None:
        """Reload if the file has changed, sooner than `watch` would."""
        if await asyncio.to_thread(self._looks) != self._seen:
            await self.try_reload("its file changed")

    def remove(self, preset: str) -> None:
        """Take a preset out of its file; blocks. Raises ConfigError."""
        config = self._supervisor.config
        line = config.lines.get(f"models.{preset}")
        if line is None or config.sources is None:
            message = f"no file names {preset}: it was found in a folder of models"
            raise ConfigError(message, remedy="delete the model's file")
        file = config.sources.file(line)
        if file == COMMAND_LINE:
            message = f"no file names {preset}: it was named on the command line"
            raise ConfigError(message, remedy="start lswap without it")
        remove_preset(Path(file), preset, self._origin.read)

    @property
    def file(self) -> Path:
        """Where presets can be added; raises ConfigError where there is no file."""
        if self._origin.file is not None:
            return self._origin.file
        if self._origin.folder is not None:
            return self._origin.folder / "added.yaml"
        raise ConfigError(
            "lswap runs without a file: there is none to add it to",
            remedy="`lswap init` writes one",
        )

    def _looks(self) -> _Looks:
        """Return what changes when a file is written or replaced; blocks."""
        keys = self._supervisor.config.keys.file
        origin = self._origin
        try:
            files = [str(file) for file in origin.files()]
        except ConfigError:  # the folder is empty or gone
            files = []
        return tuple(map(_identity, (*files, *([keys] if keys else []))))


class Scout(Generic[_Found]):
    """Looks at files in a thread; the result does not wake the loop, which asks for it.

    A file system that hangs delays only the next look.
    """

    def __init__(self) -> None:
        self._thread = Workers(1, "lswap-folders")
        self._look: Future[_Found] | None = None

    def __enter__(self) -> Scout[_Found]:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False)

    def send(self, look: Callable[[], _Found]) -> None:
        """Begin to look, unless the look before is not over."""
        if self._look is None:
            self._look = self._thread.submit(look)

    def found(self) -> _Found | None:
        """Return what the last look found, once; None if there is nothing new."""
        if self._look is None or not self._look.done():
            return None
        look, self._look = self._look, None
        return look.result()


def _refuse_newly_broken(config: Config, before: Config) -> None:
    """Raise ConfigError for presets that the file now describes wrongly.

    One that was wrong when lswap started stays listed as failed: nothing runs that could be lost.
    """
    mistakes = [
        ConfigError(message, where=where, remedy=remedy)
        for id, found in config.broken.items()
        for where, message, remedy in found
        if id not in before.broken
    ]
    if mistakes:
        raise join_errors(mistakes)


def scan_folders(folders: tuple[Folder, ...]) -> tuple[Folder, ...]:
    """Return the folders of models as they are now; blocks."""
    return tuple(scan_folder(each.path) for each in folders)


def _any_mended(broken: list[Prepared], config: Config, in_use: frozenset[str]) -> bool:
    tries = ServerTries(in_use)
    return any(is_mended(one, config, tries) for one in broken)


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _with_fixed(new: Config, old: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the new configuration with the old values of what cannot change, and their keys."""
    differ = [key for key in _FIXED if getattr(new, key) != getattr(old, key)]
    if "listen" in differ and "listen" not in new.lines:
        differ.remove("listen")  # it was given on the command line
    if (new.keys.file is None) != (old.keys.file is None):
        raise ConfigError(
            "keys cannot be switched on or off while lswap runs",
            where=new.where("keys"),
            remedy="restart it",
        )
    kept = {key: getattr(old, key) for key in _FIXED}
    return msgspec.structs.replace(new, **kept), tuple(differ)


def _say(report: ReloadReport) -> None:
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (
            ("added", report.added),
            ("removed", report.removed),
            ("changed", report.changed),
        )
        if names
    ]
    _log.info("the file is taken over: %s", "; ".join(parts) or "no model changed")
    if report.needs_restart:
        keys = ", ".join(report.needs_restart)
        _log.warning("these keys take effect after a restart: %s", keys)
