"""Models of Hugging Face that come and go while lswap serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamaswap_py.editing import add_preset
from llamaswap_py.hub.cache import remove_cached
from llamaswap_py.hub.listing import list_repo
from llamaswap_py.hub.refs import builds_of, choose, parse_ref
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.records import PresetId

if TYPE_CHECKING:
    from llamaswap_py.supervisor import Supervisor


def add_model(file: Path, reference: str) -> None:
    """Add a preset named like its repository, if that exists. Blocks; raises LswapError."""
    ref = parse_ref(reference)
    choose(ref, builds_of(list_repo(ref).files))
    add_preset(file, reference, {"hf": reference})


def request_files(supervisor: Supervisor, preset: str) -> None:
    """Have the files of a preset fetched, without loading it; returns at once."""
    supervisor.feed(ev.DownloadAsked(PresetId(preset)))


def forget_files(reference: str) -> int:
    """Delete what was fetched of a model; returns the bytes that this freed. Blocks."""
    return remove_cached(parse_ref(reference))
