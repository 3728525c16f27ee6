"""Files of a folder -> presets, by the rules of llama.cpp's `--models-dir`.

llama.cpp's rules (common/preset.cpp, load_from_models_dir): a `*.gguf` file is a model with the
file's name. A folder is a model with the folder's name: a file with `mmproj` in its name is the
projector, one that begins with `mtp-` the draft, and the first of `-00001-of-…` stands for all
shards.

lswap finds more files. Folders may be nested deeper. In a folder with several models each has its
file's name. Shards may lie beside other models. Sidecars in a folder of their own (`MTP/`) belong
to the models in the folder above.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from llamaswap_py.llamacpp.model_files import (
    INFERRED,
    bits_of,
    folder_kind,
    home_of,
    sidecar_kind,
    split_quant,
)
from llamaswap_py.llamacpp.model_files import (
    PROJECTOR as PROJECTOR_KIND,
)
from llamaswap_py.llamacpp.path_options import DRAFT_MODEL, PROJECTOR
from llamaswap_py.units import showable

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-\d{5}", re.DOTALL)
_SUFFIX: Final = ".gguf"


class GgufFile(Struct, frozen=True):
    """A file: its path, the same with all links resolved, and its size in bytes."""

    path: str
    real: str
    size: int = 0
    mtime_ns: int = 0


class Folder(Struct, frozen=True):
    """What was found below one folder of models; `problem` says why it could not be read.

    `skipped` are paths that are not UTF-8. If `single`, `path` is the file of one model, and
    `files` are this file and those beside it.
    """

    path: str
    files: tuple[GgufFile, ...] = ()
    problem: str = ""
    single: bool = False
    skipped: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """The warning about skipped files; "" if none was skipped."""
        if not self.skipped:
            return ""
        more = f" and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
        names = ", ".join(map(showable, self.skipped[:3]))
        return f"skipped, because the name is not UTF-8: {names}{more} - rename it"


class FoundModel(Struct, frozen=True):
    """A model found in a folder, with all that a preset needs."""

    id: str
    file: GgufFile
    shards: tuple[GgufFile, ...]
    projector: str | None = None
    draft: str | None = None

    @property
    def size(self) -> int:
        """The size of all its shards, in bytes."""
        return sum(shard.size for shard in self.shards)


Scan: TypeAlias = Callable[[str], Folder]
"""Reads the disk: returns what is below a folder."""


def models_in(
    folders: Iterable[Folder], *, names: Container[str] = (), files: Container[str] = ()
) -> tuple[FoundModel, ...]:
    """Return the models of folders, each file once, with ids that are not among `names`.

    `files` are those of presets; they are left out.
    """
    found: dict[str, FoundModel] = {}
    seen: set[str] = set()
    for folder in folders:
        for model in _models_of(folder):
            file = model.file
            if folder.single and all(shard.path != folder.path for shard in model.shards):
                continue
            if model.id in names or file.path in files or file.real in files or file.real in seen:
                continue
            seen.add(file.real)
            id = next(id for id in _ids(model) if id not in found and id not in names)
            found[id] = replace(model, id=id)
    return tuple(found.values())


def add_models(
    presets: dict[str, dict[str, Any]],
    unnamed: Container[str],
    folders: Iterable[Folder],
    names: Iterable[str],
) -> None:
    """Add a preset for each model of the folders that has no entry in the configuration.

    The presets in `unnamed` have no file: they are settings for the model of their name, like
    sections of llama.cpp's preset files. A new preset gets none of `names`, nor a preset's name.
    """
    taken = {*names, *(id for id in presets if id not in unnamed)}
    files = {own["model"] for own in presets.values() if own.get("model")}
    for model in models_in(folders, names=taken, files=files):
        own, found = presets.get(model.id, {}), preset_of(model)
        args = found.get("args", {}) | own.get("args", {})
        presets[model.id] = found | own | ({"args": args} if args else {})


def preset_of(model: FoundModel) -> dict[str, Any]:
    """Return the keys of a preset that runs a model."""
    args = {PROJECTOR: model.projector, DRAFT_MODEL: model.draft}
    given = {name: path for name, path in args.items() if path is not None}
    return {"model": model.file.path, **({"args": given} if given else {})}


def _ids(model: FoundModel) -> Iterator[str]:
    """Yield the names a model may have, the best one first."""
    yield model.id
    parent = posixpath.basename(posixpath.dirname(model.file.path))
    yield _name(f"{parent}/{_stem(model.file.path)}")
    yield from (f"{model.id}-{number}" for number in count(2))


def _models_of(folder: Folder) -> list[FoundModel]:
    """Return the models of one tree, folder by folder in the order of their names."""
    files = sorted(folder.files, key=lambda file: file.path)
    homes = {posixpath.dirname(one.path) for one in files if not sidecar_kind(one.path)}
    by_folder: dict[str, dict[GgufFile, str]] = {}
    for file in files:
        place, kind = posixpath.dirname(file.path), sidecar_kind(file.path)
        if home_of(file.path) in homes:
            place, kind = home_of(file.path), kind or folder_kind(file.path)
        by_folder.setdefault(place, {})[file] = kind
    found = []
    for place, kinds in sorted(by_folder.items()):
        inside = place[len(folder.path) + 1 :]
        by_folder_name = bool(inside) and "/" not in inside
        found += _models_beside(kinds, posixpath.basename(place) if by_folder_name else "")
    return found


def _models_beside(kinds: Mapping[GgufFile, str], name: str) -> list[FoundModel]:
    """Return the models among the files of one folder; a single model is named `name`."""
    sets: dict[str, list[GgufFile]] = {}
    projectors, drafts = [], []
    for file, kind in kinds.items():
        if kind == PROJECTOR_KIND:
            projectors.append(file.path)
        elif kind in INFERRED:
            drafts.append(file.path)
        elif not kind:
            sets.setdefault(_stem(file.path), []).append(file)
    found = []
    alone = len(sets) == 1
    for stem, shards in sets.items():
        if not _is_first(shards[0].path):
            continue  # without its first shard it cannot be loaded
        projector = _projector(projectors, stem, alone=alone or bool(name))
        id = _name(name if alone and name else stem)
        draft = _draft(drafts, stem, alone=alone or bool(name))
        found.append(FoundModel(id, shards[0], tuple(shards), projector, draft))
    return found


def _draft(paths: list[str], stem: str, *, alone: bool) -> str | None:
    """Return the draft head of a model: one named after it, or any if the model is `alone`.

    Among several, the one with the model's quantisation wins, else the nearest number of bits.
    """
    core, quant = split_quant(stem)
    named = [path for path in paths if core and core.lower() in _stem(path).lower()]

    def distance(path: str) -> tuple[bool, int, str]:
        own = split_quant(_stem(path))[1]
        return own != quant, abs(bits_of(own) - bits_of(quant)), path

    return min(named or (paths if alone else []), key=distance, default=None)


def _projector(paths: list[str], stem: str, *, alone: bool) -> str | None:
    """Return the projector of a model: one named after it, or the only one if it is `alone`."""
    ranked = sorted(paths, key=lambda path: ("f16" not in path.lower().replace("bf16", ""), path))
    for path in ranked:
        rest = _stem(path).replace("mmproj", "").strip("-_.")
        core = split_quant(rest)[0].lower()
        if core and stem.lower().startswith(core):
            return path
    return ranked[0] if ranked and alone else None


def _stem(path: str) -> str:
    """Return a file's name without its extension and its shard number."""
    stem = posixpath.basename(path).removesuffix(_SUFFIX)
    match = _SHARD.fullmatch(stem)
    return match["stem"] if match else stem


def _is_first(path: str) -> bool:
    match = _SHARD.fullmatch(posixpath.basename(path).removesuffix(_SUFFIX))
    return match is None or int(match["number"]) == 1


def _name(text: str) -> str:
    """Return a text changed into a name that a preset may have (preset_names.bad_name)."""
    return re.sub(r"[\0-\x1f\x7f,]", "_", text).strip()[:255] or "_"
