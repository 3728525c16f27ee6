"""Models of Hugging Face that come and go while lswap serves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llamaswap_py.editing import add_preset
from llamaswap_py.hub.cache import Cached, find_cached, remove_cached
from llamaswap_py.hub.listing import list_repo
from llamaswap_py.hub.refs import builds_of, choose, parse_ref
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.records import PresetId

if TYPE_CHECKING:
    from llamaswap_py.config.preset import Preset
    from llamaswap_py.supervisor import Supervisor


def add_model(file: Path, reference: str) -> None:
    """Add a preset named like its repository, if that exists. Blocks; raises LswapError."""
    ref = parse_ref(reference)
    choose(ref, builds_of(list_repo(ref).files))
    add_preset(file, reference, {"hf": reference})


def request_files(supervisor: Supervisor, preset: str) -> None:
    """Have the files of a preset fetched, without loading it; returns at once."""
    supervisor.feed(ev.DownloadAsked(PresetId(preset)))


def forget_files(reference: str, others: Iterable[Preset]) -> int:
    """Delete what was fetched of a model, unless one of `others` uses it; returns bytes. Blocks."""
    ref = parse_ref(reference)
    cached = find_cached(ref)
    if cached is None or any(_uses(one, cached) for one in others):
        return 0
    return remove_cached(ref)


def _uses(preset: Preset, cached: Cached) -> bool:
    files = [preset.model] if preset.model else []
    if preset.hf is not None and (own := find_cached(parse_ref(preset.hf))) is not None:
        files += own.files
    return not {os.path.realpath(one) for one in files}.isdisjoint(
        os.path.realpath(one) for one in cached.files
    )
