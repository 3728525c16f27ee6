"""A configuration that may be shown to others: its keys, numbers and names, without secrets.

Values that may be secret are left out: those of `env`, `vars` and unknown keys, because lswap does
not know their meaning; the texts of `request`; and long texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.config.json_schema import keys_of
from llamaswap_py.config.sections import Config
from llamaswap_py.redaction import REDACTED, is_secret, left_out, redact_args

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Record
    from llamaswap_py.config.json_schema import Key

_LONGEST: Final = 200


def redacted(tree: Any) -> Any:
    """Return the tree of a file, given as plain Python values, without what may be secret."""
    return _record(tree, Config)


def _record(tree: Any, record: type[Record]) -> Any:
    if not isinstance(tree, dict):
        return REDACTED if isinstance(tree, str | list) else tree
    known = keys_of(record)
    return {
        name: _key(known[name], value) if name in known else REDACTED
        for name, value in tree.items()
    }


def _key(key: Key, value: Any) -> Any:
    if key.record is None:
        return _value(key.name, value)
    if key.many == "mapping" and isinstance(value, dict):
        return {name: _record(one, key.record) for name, one in value.items()}
    if key.many == "list" and isinstance(value, list):
        return [_record(one, key.record) for one in value]
    return _record(value, key.record)


def _value(name: str, value: Any) -> Any:
    if is_secret(name):
        return REDACTED
    if name in ("env", "vars"):
        return dict.fromkeys(value, REDACTED) if isinstance(value, dict) else REDACTED
    if name in ("cmd", "stop_cmd", "extra"):
        return _command(value)
    if name == "request":
        return _without_texts(value)
    if isinstance(value, dict):
        return {key: _value(key, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_value("", one) for one in value]
    return _text(value) if isinstance(value, str) else value


def _command(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(word) for word in redact_args(map(str, value))]
    return REDACTED if value else value


def _without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: REDACTED if is_secret(name) else _without_texts(one)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [_without_texts(one) for one in value]
    return left_out(len(value), "character") if isinstance(value, str) else value


def _text(value: str) -> str:
    long = len(value) > _LONGEST or "\n" in value
    return left_out(len(value), "character") if long else value
