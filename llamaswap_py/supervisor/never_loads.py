"""What keeps a preset from ever loading, although the file is well-formed: for `lswap check`.

Headers are read and the engine's dry run is heard here, and not for `lswap up`: it would start late
with many models, and says the same at the first load.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamaswap_py.config.argv import PresetProblem, place_of
from llamaswap_py.config.sections import Config, Preset
from llamaswap_py.estimate.files import open_header
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.gguf.shards import shard_paths
from llamaswap_py.llamacpp.file_kinds import MODEL, kind_for, kind_of
from llamaswap_py.llamacpp.fit_params import refusal_in
from llamaswap_py.llamacpp.memory_settings import MOST_SLOTS, SLOTS, read_settings
from llamaswap_py.llamacpp.path_options import files_named
from llamaswap_py.supervisor.fit import FitResult
from llamaswap_py.supervisor.prepare import LoadWay, Prepared
from llamaswap_py.units import HOST


def never_loads(prepared: Prepared, judged: FitResult, config: Config) -> list[PresetProblem]:
    """Return what keeps a preset from ever loading, beside its memory; blocks."""
    estimate = judged.estimate
    if prepared.engine is None or prepared.plan.absent or prepared.preset.cmd is not None:
        return []
    found: list[PresetProblem] = []
    for way in prepared.ways.values():
        is_read = estimate is not None and way.preset.memory is None
        found += _of_files(way.preset, config, model_is_read=is_read)
        found += _of_slots(way, config)
    if not found and estimate is not None:
        for note in (*estimate.notes, *(one.note for one in judged.tried)):
            if reason := refusal_in(note, on_host=set(estimate.footprint) == {HOST}):
                message = f"llama-server refuses to start with this: {reason}"
                where = config.where(f"models.{prepared.preset.id}")
                found.append(PresetProblem(prepared.preset.id, where, message, _CHANGE_ARGS))
    return list(dict.fromkeys(found))


_CHANGE_ARGS = "change `args`, or take another file or engine"


def _of_files(preset: Preset, config: Config, *, model_is_read: bool) -> Iterator[PresetProblem]:
    """Yield files that are cut off, or of another kind than is needed where they are named.

    The header of a model that was estimated has been read: it is good.
    """
    wanted = [] if model_is_read else [(one, "model", MODEL) for one in shard_paths(preset.model)]
    wanted += [(one, f"args.{key}", kind_for(key)) for one, key in files_named(preset)]
    for path, key, kind in wanted:
        if not kind:
            continue
        where = config.where(place_of(config, preset, key))
        try:
            header = open_header(path)
        except EstimateError as error:
            yield PresetProblem(preset.id, where, error.message, error.remedy)
            continue
        is_kind = kind_of(header)
        if is_kind == kind and header.architecture:
            continue
        message = f"{path} is {is_kind}, and {kind} is needed here"
        if is_kind == kind:
            message = f"{path} names no architecture (general.architecture)"
        yield PresetProblem(preset.id, where, message, "name another file")


def _of_slots(way: LoadWay, config: Config) -> Iterator[PresetProblem]:
    slots = read_settings(way.args).slots
    if slots > MOST_SLOTS:
        where = config.where(place_of(config, way.preset, f"args.{SLOTS}"))
        message = f"llama-server has at most {MOST_SLOTS} slots, not {slots}"
        yield PresetProblem(way.preset.id, where, message, f"write {SLOTS}: {MOST_SLOTS}")
