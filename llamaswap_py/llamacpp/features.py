"""The features of a llama-server, read from its own `--help` and `--version`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CHILD_MODE_MARK",
    "STREAM_MARK",
    "EngineFeatures",
    "Option",
    "detect_features",
    "parse_build",
    "parse_options",
]

CHILD_MODE_MARK = b"cmd_child_to_router:"
"""A binary has child mode if it, or a library beside it, contains these bytes.

The prefix of the lines for a router in tools/server/server-models.cpp. `--help` does not mention
the mode.
"""
STREAM_MARK = b"/v1/stream/:conv_id"
"""A binary that contains these bytes takes a conversation's id in the path, not in the query."""

# common_arg::to_string in common/arg.cpp: descriptions start in this column, and option names
# longer than it allows have the line for themselves.
_COLUMN = 40
_NAME = re.compile(r"(--?[A-Za-z][\w.-]*)(,\s*(?=-))?")
_ENVIRONMENT = re.compile(r"\s*\(env: (\w+)\)\s*$")
_BUILD = re.compile(r"^version: (?:(\d+) \(|.*\(build (\d+)\b)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of llama-server, with all its names (dashes included).

    `hint` describes the values as `--help` does ("N", "[on|off|auto]"); "" for a flag. `values`
    is how many arguments follow the name. `negated` are the forms that turn a flag off.
    """

    names: tuple[str, ...]
    negated: tuple[str, ...] = ()
    hint: str = ""
    values: int = 0
    env: str | None = None
    description: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """The name llama.cpp itself uses in its preset files (common/preset.cpp): the last one."""
        return self.names[-1]

    @property
    def removed(self) -> bool:
        """Whether the binary knows the option only to report that it was removed."""
        return self.description.startswith("the argument has been removed")


@dataclass(frozen=True, slots=True)
class EngineFeatures:
    """Features that lswap uses if the binary has them; it also works without them."""

    child_mode: bool = False
    unix_socket: bool = False
    log_jsonl: bool = False
    metrics: bool = False
    fit: bool = False
    stream_in_path: bool = False
    """Its route for an answer without a client is `/v1/stream/ID`; newer: `/v1/stream?conv_id=`."""


def detect_features(
    options: Mapping[str, Option],
    *,
    child_mode: bool,
    stream_in_path: bool = False,
) -> EngineFeatures:
    """Derive features from the option table.

    `child_mode` and `stream_in_path`: whether CHILD_MODE_MARK and STREAM_MARK were found.
    """
    host = options.get("--host")
    return EngineFeatures(
        child_mode=child_mode,
        unix_socket=host is not None and ".sock" in host.description,
        log_jsonl="--log-jsonl" in options,
        metrics="--metrics" in options,
        fit="--fit" in options,
        stream_in_path=stream_in_path,
    )


def parse_build(version_text: str) -> int | None:
    """Read the build number from `--version`; None when it does not tell (or says 0).

    Old form: `version: 6789 (abcdef1)`. New form: `version: 0.6.0 (build 11434, commit abcdef1)`.
    """
    match = _BUILD.search(version_text)
    return int(match[1] or match[2]) or None if match else None


@lru_cache(maxsize=8)
def parse_options(help_text: str) -> dict[str, Option]:
    """Read the option table from `--help`: every name, negated ones too, maps to its Option.

    The result is shared between callers; treat it as read-only.
    """
    table: dict[str, Option] = {}
    head, text = "", list[str]()
    for line in [*help_text.splitlines(), "-"]:
        if line.startswith("-"):
            if option := _parse_option(head, " ".join(text)):
                table |= dict.fromkeys((*option.names, *option.negated), option)
            beside = line[_COLUMN - 3 : _COLUMN] == "   "
            head, text = (line[:_COLUMN], [line[_COLUMN:]]) if beside else (line, [])
        else:
            text.append(line.strip())
    return table


def _parse_option(head: str, text: str) -> Option | None:
    names: list[str] = []
    rest = head.rstrip()
    while match := _NAME.match(rest):
        names.append(match[1])
        rest = rest[match.end() :]
        if not match[2]:
            break
    if not names:
        return None  # a heading of dashes
    positive, negated = _split_negated(names)
    env = _ENVIRONMENT.search(text)
    hint = rest.strip()
    return Option(
        names=tuple(positive),
        negated=tuple(negated),
        hint=hint,
        values=len(re.sub(r"<[^>]*>", "X", hint).split()),
        env=env[1] if env else None,
        description=_ENVIRONMENT.sub("", text).strip(),
    )


def _split_negated(names: list[str]) -> tuple[list[str], list[str]]:
    """Cut `-kvo, --kv-offload, -nkvo, --no-kv-offload` in two; `--no-host` is not a negation."""
    first = next((i for i, name in enumerate(names) if i and name.startswith("--no-")), len(names))
    if first < len(names) and first > 1 and not names[first - 1].startswith("--"):
        first -= 1
    if not any(name.startswith("--") for name in names[:first]):
        return names, []
    return names[:first], names[first:]
