"""Downloads the files of presets that name a repository, each by a process of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec

from llamaswap_py.hub.fetch import Order, Step
from llamaswap_py.hub.refs import HubError, parse_ref
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.types import Failure, PresetId
from llamaswap_py.supervisor.prepare import Prepared
from llamaswap_py.tasks import guard
from llamaswap_py.units import format_size

_log: Final = logging.getLogger("lswap")
_LONGEST_LINE: Final = 1 << 20


class Downloads:
    """Runs the downloads that the scheduler asks for, in the supervisor's task group.

    `arrived(preset)` makes the preset ready to run once its files are there.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        dispatch: Callable[[ev.Event], None],
        arrived: Callable[[str], Awaitable[Prepared | None]],
    ) -> None:
        self._tasks = tasks
        self._dispatch = dispatch
        self._arrived = arrived
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, preset: str, reference: str, heads: tuple[str, ...] = ()) -> None:
        """Begin to fetch a model, and draft heads of these kinds beside it; events follow."""
        work = self._run(preset, reference, heads)
        task = self._tasks.create_task(work, name=f"download {preset}")
        self._running[preset] = task
        task.add_done_callback(lambda done: self._ended(preset, done))

    def cancel_all(self) -> None:
        """End all downloads; their bytes stay on disk, and the next run continues from them."""
        self.cancel(tuple(self._running))

    def cancel(self, presets: Iterable[str]) -> None:
        """End the downloads of presets that were removed."""
        for preset in presets:
            if (task := self._running.get(preset)) is not None:
                task.cancel()

    async def ended(self, preset: str) -> None:
        """Wait until no process writes files of a preset any more."""
        if (task := self._running.get(preset)) is not None:
            await asyncio.wait({task})

    def _ended(self, preset: str, task: asyncio.Task[None]) -> None:
        if self._running.get(preset) is task:
            del self._running[preset]

    async def _run(self, preset: str, reference: str, heads: tuple[str, ...]) -> None:
        try:
            failure = await self._fetch(preset, reference, heads)
            if failure is None and (prepared := await self._arrived(preset)) is not None:
                self._dispatch(ev.DownloadFinished(PresetId(preset), prepared.plan))
        except (OSError, HubError, ValueError) as error:  # ValueError: what is not a line of a Step
            failure = Failure("download", f"{reference}: {error}")
        except Exception as error:
            guard.report("download", error)
            failure = Failure("download", f"{reference}: lswap failed to download it: {error}")
        if failure is not None:
            self._dispatch(ev.DownloadFailed(PresetId(preset), failure))

    async def _fetch(self, preset: str, reference: str, heads: tuple[str, ...]) -> Failure | None:
        ref = parse_ref(reference)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llamaswap_py.hub.fetch"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        last = Step("failed", error="its process ended without a word")
        try:
            process.stdin.write(msgspec.json.encode(Order(ref.repo, tag=ref.tag, heads=heads)))
            process.stdin.close()
            async for line in process.stdout:
                last = msgspec.json.decode(line, type=Step)
                if last.total:
                    self._dispatch(
                        ev.DownloadProgressed(PresetId(preset), last.done / last.total, last.total)
                    )
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if last.state == "done":
            _log.info("%s: %s of %s are here", preset, format_size(last.total), reference)
            return None
        text = f"{last.error} - {last.remedy}" if last.remedy else last.error
        return Failure("download", f"{reference}: {text}")
