"""How a key is described: its form, its description, its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Meta, Struct

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Form


def key(description: str, form: Form, *examples: Any) -> Meta:
    """Describe a value that YAML writes in its own way."""
    return Meta(description=description, examples=list(examples), extra={"form": form})


def plain(description: str, *examples: Any, ge: int | None = None, le: int | None = None) -> Meta:
    """Describe a value that YAML and Python write alike: a boolean, a number, one of some words."""
    return Meta(description=description, examples=list(examples), ge=ge, le=le)


def word(description: str, word: str, *, ge: int) -> Meta:
    """Describe a number that may also be left open with a word, which is None here."""
    return Meta(description=description, examples=[word, ge], ge=ge, extra={"word": word})


class Record(Struct, frozen=True):
    """A mapping with fixed keys."""
