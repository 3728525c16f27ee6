"""What to say about text that is not YAML."""

from __future__ import annotations

from typing import Final

import yaml
from yaml.reader import ReaderError

from llamaswap_py.errors import ConfigError

# (part of PyYAML's or libyaml's message, what to do about it), first match wins. A release of these
# libraries which words a mistake differently loses the remedy; the place is still right.
_REMEDIES: Final = (
    ("found character '\\t'", "YAML indents with spaces: replace the tab"),
    (
        "mapping values are not allowed",
        "quote the value if it contains ': ', else check the indentation",
    ),
    ("could not find expected ':'", "every key is followed by ': ' and its value"),
    ("found unexpected end of stream", "a quote, bracket or brace is not closed"),
    ("found unexpected ':'", "quote the value"),
    ("unknown escape", "inside \"…\" a backslash must be doubled; in '…' it stands for itself"),
    ("escape sequence", "inside \"…\" a backslash must be doubled; in '…' it stands for itself"),
    ("found undefined alias", "a value that starts with * names an anchor: quote it"),
    ("found duplicate anchor", "give each anchor (&name) its own name"),
    ("expected alphabetic or numeric character", "a value that starts with * or & must be quoted"),
    ("cannot start any token", "a value that starts with this character must be quoted"),
    ("but found another document", "one file is one document: remove the '---' lines"),
    ("expected <block end>", "check the indentation: keys of one level start in the same column"),
    ("expected ',' or", "a bracket or brace is not closed, or a comma is missing"),
    ("nesting depth", "the values are nested too deeply: check the brackets"),
    ("special characters are not allowed", "save the file as UTF-8 text"),
)


def syntax_error(error: yaml.YAMLError, text: str, source: str) -> ConfigError:
    message, place = str(error), source
    if isinstance(error, yaml.MarkedYAMLError):
        message = error.problem or error.context or message
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{source}:{mark.line + 1}:{mark.column + 1}"
        if error.context and error.context_mark is not None and error.context != message:
            message = f"{message} ({error.context} from line {error.context_mark.line + 1})"
    elif isinstance(error, ReaderError):
        message = f"{error.reason} ({_character(error.character)})"
        before = text[: error.position]
        place = f"{source}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    remedy = next((remedy for part, remedy in _REMEDIES if part in message), "")
    if isinstance(error, yaml.MarkedYAMLError) and _names_variable(error, text):
        remedy = 'between { } and [ ] a value with ${…} is quoted: "${name}"'
    return ConfigError(f"this is not YAML: {message}", where=place, remedy=remedy)


def _names_variable(error: yaml.MarkedYAMLError, text: str) -> bool:
    """Tell whether the mistake is the brace of an unquoted `${`."""
    mark = error.problem_mark
    if mark is None or "${" not in text:
        return False
    line = text.split("\n")[mark.line] if mark.line < text.count("\n") + 1 else ""
    return line[max(mark.column - 1, 0) : mark.column + 1] == "${"


def _character(character: object) -> str:
    return f"U+{character:04X}" if isinstance(character, int) else repr(character)
