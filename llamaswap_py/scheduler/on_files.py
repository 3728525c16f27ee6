"""What is done to a preset's files: their download, and what was read of them ahead of need."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.control import Control
from llamaswap_py.scheduler.world import World
from llamaswap_py.units import format_size


class OnFiles:
    """Handlers of events about files; those of a preset that is gone change nothing."""

    def __init__(self, world: World, control: Control) -> None:
        self.world = world
        self.control = control

    def download_asked(self, event: ev.DownloadAsked) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is not None and preset.plan.absent and preset.downloading_since is None:
            self.control.download(preset)
        return False

    def download_progressed(self, event: ev.DownloadProgressed) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is not None and preset.downloading_since is not None:
            preset.downloaded = min(max(event.fraction, 0.0), 1.0)
        return False

    def download_finished(self, event: ev.DownloadFinished) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None:
            return False
        pin = preset.pin
        self.world.add_preset(event.plan)
        preset.pin = pin
        preset.downloading_since = None
        preset.failures, preset.failure = 0, None
        self.control.note_preset("downloaded", preset, "its files are there")
        return True

    def download_failed(self, event: ev.DownloadFailed) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None or preset.downloading_since is None:
            return False
        preset.downloading_since = None
        preset.failures += 1
        preset.failure = event.failure
        self.control.note_preset("failed", preset, event.failure.summary)
        self.control.back_off(preset, preset.failures - 1)
        return True

    def files_read(self, event: ev.FilesRead) -> bool:
        preset = self.world.presets.get(event.preset)
        if preset is None:
            return False
        state = preset.reason
        self.control.note_preset(
            "kept in memory" if event.kept else "read ahead",
            preset,
            f"{format_size(event.there)} of {format_size(event.size)} are in the page cache, "
            f"{format_size(event.read)} were read in {event.seconds:.1f} s",
        )
        preset.reason = state  # it is no reason for what state the model is in
        return False
