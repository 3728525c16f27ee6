"""What the name of a file says: a model or a sidecar, its quantisation, whether a tag means it.

Sidecars are files beside a model: projectors, matrices, draft heads. Repositories and folders use
the same rule, so that a draft head is never served as a model. The rules and names are llama.cpp's
(common/download.cpp, common/preset.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

_QUANT: Final = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|BF16|F16|F32|FP16|(?:MX|NV)FP4(?:_MOE)?|TQ[12]_0))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
PREFERRED: Final = ("Q4_K_M", "Q8_0")
"""The quantisations that a reference without a tag means, the best first."""
PROJECTOR: Final = "mmproj"
HEADS: Final = {
    "draft-mtp": "mtp-",
    "draft-dspark": "dspark-",
    "draft-dflash": "dflash-",
    "draft-eagle3": "eagle3-",
}
"""Value of `spec-type` -> beginning of the names of such draft heads, in order of preference."""
INFERRED: Final = frozenset({"draft-mtp", "draft-dspark", "draft-dflash"})
"""Kinds that llama-server recognises by the draft's file, without `spec-type`."""
_OTHERS: Final = ("imatrix", "ggml-vocab-")
_FOLDERS: Final = {
    **{prefix.rstrip("-"): kind for kind, prefix in HEADS.items()},
    PROJECTOR: PROJECTOR,
    "imatrix": "imatrix",
}


def sidecar_kind(path: str, *, strict: bool = False) -> str:
    """Return the kind of a sidecar: a value of `spec-type`, `mmproj`, …; "" for a model.

    `strict` is for repositories: then, as in llama.cpp, a lower-case `mtp-` anywhere in the name
    decides, or a folder of that name. Otherwise the name must begin with it.
    """
    name = path.rpartition("/")[2]
    low = name.lower()
    for word in (PROJECTOR, *_OTHERS):
        if word in low:
            return word
    for kind, prefix in HEADS.items():
        if low.startswith(prefix) or (strict and prefix in name):
            return kind
    return folder_kind(path) if strict else ""


def folder_kind(path: str) -> str:
    """Return a file's kind by the name of its folder: the folder `MTP` holds draft heads."""
    return _FOLDERS.get(path.rpartition("/")[0].rpartition("/")[2].lower(), "")


def home_of(path: str) -> str:
    """Return the folder of the models that a file belongs to: for `MTP/x.gguf` the one above."""
    folder = path.rpartition("/")[0]
    above, _, name = folder.rpartition("/")
    return above if name.lower() in _FOLDERS else folder


def heads_in(spec_type: object) -> tuple[str, ...]:
    """Return the kinds of draft heads that a preset's `spec-type` asks for."""
    given = spec_type if isinstance(spec_type, (list, tuple)) else str(spec_type or "").split(",")
    asked = {str(one).strip() for one in given}
    return tuple(kind for kind in HEADS if kind in asked)


def is_home(file_home: str, model_path: str) -> bool:
    """Tell whether a model may use a sidecar with that home: the model's folder, or one above."""
    folder = model_path.rpartition("/")[0]
    return file_home in ("", folder) or folder.startswith(f"{file_home}/")


def bits_of(quant: str) -> int:
    """Return the first number in the name of a quantisation: 4 of Q4_K_M, 16 of BF16."""
    digits = ""
    for letter in quant:
        if letter.isdigit():
            digits += letter
        elif digits:
            break
    return int(digits) if digits else 0


def quant_of(path: str) -> str:
    """Return the quantization in a file name, in capitals; "" if the name has none."""
    folder, _, name = path.rpartition("/")
    found = _QUANT.findall(name) or _QUANT.findall(folder)
    return str(found[-1]).upper() if found else ""


def split_quant(stem: str) -> tuple[str, str]:
    """Return a name without the quantisation at its end, and this in capitals, "" if none."""
    *_, last = [None, *_QUANT.finditer(stem)]
    core = stem[: last.start()].rstrip("-_.") if last is not None else ""
    if last is None or last.end() < len(stem) or not core:
        return stem, ""
    return core, last[0].upper()


def find_tagged(tag: str, models: Sequence[tuple[str, str]]) -> int | None:
    """Return which of the models (quantisation, path) a tag means: a place in the list, or None.

    It is a file, a quantisation, else a part of a path as in llama.cpp. There the tag ends at a `-`
    or a `.`, so `Q4_K_XL` is found in `UD-Q4_K_XL-00001-of-00002.gguf`. Exact names come first,
    because `F16` is a part of `BF16`; a folder of that name comes last.
    """
    wanted = tag.lower()
    part = re.compile(re.escape(wanted) + "[.-]")
    rules: tuple[Callable[[str, str], bool], ...] = (
        lambda quant, path: path == wanted or path.rpartition("/")[2] == wanted,
        lambda quant, path: quant == wanted,
        lambda quant, path: part.search(path) is not None,
        lambda quant, path: f"{wanted}/" in path,
    )
    for rule in rules:
        for place, (quant, path) in enumerate(models):
            if rule(quant.lower(), path.lower()):
                return place
    return None
