"""Keep secrets out of what is shown: logs, the state, command lines. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REDACTED: Final = "[redacted]"
_NAME: Final = r"(?:[A-Z0-9_]*_)?(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)"
_SECRET_NAME: Final = re.compile(_NAME, re.IGNORECASE)
_OPTIONS: Final = ("--api-key", "--hf-token", "-hft", "--token", "--password")
"""Options of llama-server, and of programs that stand in for it, whose value is a secret."""
_SHORTEST: Final = 8
"""Values shorter than this are words, and redacting them would make logs unreadable."""
# What a secret looks like wherever it stands: after its option, its variable, its header; and the
# tokens of Hugging Face, of lswap (config/keyfile.py) and of OpenAI by their beginnings.
_PATTERN: Final = re.compile(
    r"(?P<before>(?:--api-key|--hf-token|-hft|--password)[ =]+"
    rf"|\b{_NAME}=" + r"|\b[Bb]earer +(?=\S{8})|\b[Bb]asic +(?=[A-Za-z0-9+/]{12})"
    r"|\b(?i:authorization|x-api-key)[\"']?: *[\"']?(?![Bb]earer|[Bb]asic))"
    r"[^\s\"',;]+"
    r"|\b(?:hf_[A-Za-z0-9]{10,}|lsk-[\w-]{10,}|sk-[\w-]{16,})"
)
# What a match cannot do without, in lower case: looking for these costs a thirtieth of the pattern,
# and a child may write a gigabyte of lines.
_HINTS: Final = (
    *("api-key", "hf-token", "-hft", "--password", "token=", "key=", "secret=", "password="),
    *("passwd=", "credential", "bearer ", "basic ", "authorization", "hf_", "sk-"),
)


class Redactor:
    """Replaces secrets in text: those of `env` by their value, others by what they look like."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        # The longest first: one may be the beginning of another.
        self._values = sorted(secret_values(env or {}), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return `text` without its secrets."""
        for value in self._values:
            if value in text:
                text = text.replace(value, REDACTED)
        return _PATTERN.sub(_hide, text) if _may_match(text) else text


def secret_values(env: Mapping[str, str]) -> set[str]:
    """Return the values of those variables whose names say that they are secret."""
    return {
        value
        for name, value in env.items()
        if len(value) >= _SHORTEST and _SECRET_NAME.fullmatch(name)
    }


def redact_args(args: Iterable[str]) -> tuple[str, ...]:
    """Return a command line without the values of its secret options."""
    shown: list[str] = []
    secret = False
    for word in args:
        option, equals, _ = word.partition("=")
        if secret:
            shown.append(REDACTED)
        elif equals and option in _OPTIONS:
            shown.append(f"{option}={REDACTED}")
        else:
            shown.append(_PATTERN.sub(_hide, word))
        secret = not secret and word in _OPTIONS
    return tuple(shown)


def _may_match(text: str) -> bool:
    if not text.isascii():  # where upper and lower case are not one to one
        return True
    lower = text.lower()
    for hint in _HINTS:  # noqa: SIM110 (`any` takes thrice as long)
        if hint in lower:
            return True
    return False


def _hide(found: re.Match[str]) -> str:
    return f"{found['before'] or ''}{REDACTED}"
