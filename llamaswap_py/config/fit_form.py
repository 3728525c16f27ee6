"""The form of the key `fit`: whether lswap chooses what the options leave open, and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from llamaswap_py import units
from llamaswap_py.config.forms import (
    EXACT,
    AutoVariants,
    Favor,
    Fit,
    Form,
    PerDevice,
    at_key,
    expected,
    or_word,
    read_text,
)
from llamaswap_py.config.model_forms import MARGIN, SIZES
from llamaswap_py.config.yaml_tree import UNKNOWN_KEY, Invalid, Node, Scalar, Table

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Base

_Word = TypeVar("_Word", bound=str)
_FAVORS: Final[tuple[Favor, ...]] = get_args(Favor)
_VARIANTS: Final[tuple[AutoVariants, ...]] = get_args(AutoVariants)


def _tokens(node: Node, _: Base) -> int:
    text = read_text(node, "a number of tokens like 8192 or 8k")
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, str):
        value = units.parse_tokens(text)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Invalid(node, f"{text!r} is not a number of tokens", "write one like 8192 or 8k")
    return value


TOKENS: Final = Form(
    _tokens,
    {
        "anyOf": [
            {"title": "tokens", "type": "integer", "minimum": 1},
            {"title": "tokens", "type": "string", "pattern": units.TOKENS_PATTERN},
        ]
    },
)


def _limits(node: Node, base: Base) -> Fit:
    if not isinstance(node, Table):
        raise expected(node, "auto, exact, shrink, or a mapping like {favor: context}")
    found: dict[str, Any] = {}
    for name, entry in node.entries.items():
        try:
            if name == "context":
                found |= _context(entry.value, base)
            elif name == "favor":
                found["favor"] = _one_of(entry.value, _FAVORS)
            elif name == "variants":
                found["variants"] = _one_of(entry.value, _VARIANTS)
            elif name == "margin":
                found["margin"] = _margin(entry.value, base)
            else:
                raise Invalid(entry, UNKNOWN_KEY, "known here: context, favor, margin, variants")
        except Invalid as error:
            error.key = f"{name}.{error.key}" if error.key else name
            raise
    return Fit(**found)


def _context(node: Node, base: Base) -> dict[str, int]:
    if not isinstance(node, Table):
        raise expected(node, "a mapping like {least: 8k, want: 32k}")
    found: dict[str, int] = {}
    for name, entry in node.entries.items():
        if name not in ("least", "want"):
            raise Invalid(entry, UNKNOWN_KEY, "known here: least, want", key=name)
        found[name] = at_key(name, TOKENS, entry.value, base)
    if found.get("least", 0) > found.get("want", max(found.get("least", 0), Fit().want)):
        raise Invalid(node, "least is more than want", "lower least, or raise want")
    # One that is given alone moves the other: nobody who wants 4k insists on 8k.
    least = found.get("least", min(Fit().least, found.get("want", Fit().least)))
    return {"least": least, "want": found.get("want", max(Fit().want, least))}


def _one_of(node: Node, words: tuple[_Word, ...]) -> _Word:
    said = " or ".join(words)
    text = read_text(node, said)
    for word in words:
        if text == word:
            return word
    raise Invalid(node, f"{text!r} is not {said}")


def _margin(node: Node, base: Base) -> PerDevice:
    if isinstance(node, Table):
        return PerDevice(0, SIZES.read(node, base))
    margin: PerDevice = MARGIN.read(node, base)
    return margin


def _spell(fit: Fit) -> Any:
    usual = Fit()
    said: dict[str, Any] = {}
    if (fit.least, fit.want) != (usual.least, usual.want):
        said["context"] = {"least": fit.least, "want": fit.want}
    if fit.favor != usual.favor:
        said["favor"] = fit.favor
    if fit.margin != usual.margin:
        said["margin"] = MARGIN.spell(fit.margin)
    if fit.variants != usual.variants:
        said["variants"] = fit.variants
    return said


FIT: Final = or_word(
    "auto",
    or_word(
        "exact",
        or_word(
            "shrink",  # the word of 0.1 and 0.2
            Form(
                _limits,
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "context": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"least": TOKENS.schema, "want": TOKENS.schema},
                        },
                        "favor": {"enum": [*_FAVORS]},
                        "margin": MARGIN.schema,
                        "variants": {"enum": [*_VARIANTS]},
                    },
                },
                _spell,
            ),
            Fit(),
        ),
        EXACT,
    ),
    Fit(),
)
