"""Mistakes of a preset that concern several of its keys at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.config.model_forms import misplaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HUB: Final = re.compile(r"(hf\.co/)?[\w][\w.-]*/[\w][\w.-]*(:([^\s/]+|[^\s:]+\.gguf))?", re.ASCII)
"""How a repository of Hugging Face is written."""
_PAGE: Final = re.compile(r"(?:.*/)?https?:/+(?:hf\.co|huggingface\.co)/([\w.-]+/[\w.-]+)")
"""An address below a repository's page, as people copy it from their browser."""


def combined_mistakes(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what is wrong with a preset's keys together: key ("": the preset), message, remedy."""
    yield from misplaced(values)
    if "cmd" in values and values["cmd"] is None and not {"model", "hf"} & values.keys():
        yield "", "it names no file and no program", "add model: PATH"
    reference = values.get("hf")
    if reference is None:
        if "hf" in values and "model" not in values:
            yield "", "it names no file", "add model: PATH"
    elif "model" in values:
        yield "hf", "the preset names a file, too", "keep one of model and hf"
    elif not HUB.fullmatch(reference):
        page = _PAGE.match(reference)
        remedy = f"write {page[1]}" if page else "write user/repo or user/repo:QUANT"
        yield "hf", f"{reference!r} names no repository", remedy
    if isinstance(file := values.get("model"), str) and (page := _PAGE.search(file)):
        message = "this is an address on the web, not a path"
        yield "model", message, f"write hf: {page[1]} instead: its files are fetched on first use"
