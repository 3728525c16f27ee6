"""What a GGUF file is, by its header: llama-server takes each kind in one place only. Pure."""

from __future__ import annotations

from typing import Final

from llamaswap_py.gguf.header import Header

MODEL: Final = "a model"
PROJECTOR: Final = "a projector"
ADAPTER: Final = "a LoRA adapter"
CONTROL_VECTOR: Final = "a control vector"
_BY_TYPE: Final = {
    "mmproj": PROJECTOR,
    "adapter": ADAPTER,
    "imatrix": "an importance matrix",
    "dataset": "a data set",
}
_BY_ARCHITECTURE: Final = {
    "clip": PROJECTOR,
    "controlvector": CONTROL_VECTOR,
    "imatrix": "an importance matrix",
}
_OF_OPTION: Final = {
    "mmproj": PROJECTOR,
    "lora": ADAPTER,
    "lora-scaled": ADAPTER,
    "control-vector": CONTROL_VECTOR,
    "control-vector-scaled": CONTROL_VECTOR,
    "model-draft": MODEL,
    "spec-draft-model": MODEL,
    "model-vocoder": MODEL,
}


def kind_of(header: Header) -> str:
    """Return what a file is; one that says nothing of it is a model."""
    said = _BY_TYPE.get(str(header.metadata.get("general.type", "")))
    return said or _BY_ARCHITECTURE.get(header.architecture, MODEL)


def kind_for(option: str) -> str:
    """Return what the file of an option has to be; "" for one that is no GGUF file."""
    return _OF_OPTION.get(option, "")
