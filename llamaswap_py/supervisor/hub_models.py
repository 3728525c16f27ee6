"""Adds and removes models of Hugging Face while lswap serves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llamaswap_py.config.edit import add_preset
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.gguf.shards import shard_paths
from llamaswap_py.hub.api import list_repo
from llamaswap_py.hub.cache import find_cached, remove_cached
from llamaswap_py.hub.refs import HubError, HubRef, builds_of, choose, parse_ref
from llamaswap_py.llamacpp.model_files import heads_in
from llamaswap_py.llamacpp.options import SPECULATION
from llamaswap_py.llamacpp.path_options import DRAFT_MODEL, PROJECTOR, decides_projector

if TYPE_CHECKING:
    from llamaswap_py.config.preset import Preset


def add_model(file: Path, reference: str) -> None:
    """Add a preset named like its repository, if that exists. Blocks; raises LswapError."""
    ref = parse_ref(reference)
    choose(ref, builds_of(list_repo(ref).files))
    add_preset(file, reference, {"hf": reference})


def pull_hint(name: str) -> str:
    """Return what to do for a model that a client wants to pull and the file does not have."""
    try:
        ref = parse_ref(name)
    except HubError as error:
        return error.remedy
    return f"`lswap pull {ref} --config FILE` adds it, and so does POST /models with an admin key"


def delete_files(reference: str, others: Iterable[Preset]) -> int:
    """Delete what was fetched of a model, as far as none of `others` uses it; returns bytes.

    Blocks.
    """
    ref = parse_ref(reference)
    used, alone = needed_files(ref, others)
    return remove_cached(ref, used=used, alone=alone)


def needed_files(ref: HubRef, others: Iterable[Preset]) -> tuple[set[str], bool]:
    """Return the real paths of files that presets need, and whether none names `ref`'s repository.

    Blocks.
    """
    used: set[str] = set()
    alone = True
    for preset in others:
        used |= {os.path.realpath(file) for file in _files_of(preset)}
        its = _ref(preset)
        alone &= its is None or its.repo != ref.repo
    return used, alone


def _files_of(preset: Preset) -> list[str]:
    """Return the files that a preset needs, as far as they are here."""
    named: list[str] = [preset.model]
    for one in variant_presets(preset):
        for value in one.args.values():
            named += [str(each) for each in (value if isinstance(value, tuple) else (value,))]
    ref = _ref(preset)
    if ref is not None and (cached := find_cached(ref)) is not None:
        named += [*cached.files, *filter(None, [cached.projector]), *cached.heads.values()]
    return [shard for one in named if one for shard in shard_paths(one)]


def _ref(preset: Preset) -> HubRef | None:
    """Return the repository of a preset; None too where the file names it wrongly."""
    try:
        return None if preset.hf is None else parse_ref(preset.hf)
    except HubError:
        return None


def with_files(preset: Preset) -> tuple[Preset, bool]:
    """Return a preset of a repository with the files that are here, and whether some are missing.

    A projector that came with the model is used, and the draft head that `spec-type` asks for,
    unless the preset says otherwise.
    """
    if preset.hf is None:
        return preset, False
    cached = find_cached(parse_ref(preset.hf))
    if cached is None:
        return preset, True
    args = dict(preset.args)
    if cached.projector is not None and not decides_projector(args):
        args[PROJECTOR] = cached.projector
    wanted = () if DRAFT_MODEL in args else heads_in(args.get(SPECULATION))
    if head := next((cached.heads[kind] for kind in wanted if kind in cached.heads), None):
        args[DRAFT_MODEL] = head
    missing = head is None and any(kind in cached.others for kind in wanted)
    return msgspec.structs.replace(preset, model=cached.model, args=args), missing


def heads_asked(preset: Preset) -> tuple[str, ...]:
    """Return the kinds of draft heads that a preset's files need, in any of its variants."""
    ways = [preset, *variant_presets(preset)]
    asked = [kind for one in ways for kind in heads_in(one.args.get(SPECULATION))]
    return tuple(dict.fromkeys(asked))
