"""Recognises files beside a model that are not models: projectors, matrices, draft heads.

Repositories and folders use the same rule, so that a draft head is never served as a model. The
names are llama.cpp's (common/download.cpp, common/preset.cpp).
"""

from __future__ import annotations

from typing import Final

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
