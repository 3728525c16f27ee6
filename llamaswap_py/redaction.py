"""Keep secrets out of what is shown: logs, the state, command lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

REDACTED: Final = "[redacted]"
_NAME: Final = r"(?:[A-Z0-9_]*_)?(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)"
_SECRET_NAME: Final = re.compile(_NAME, re.IGNORECASE)
_OPTIONS: Final = ("--api-key", "--hf-token", "-hft", "--token", "--password")
"""Options of llama-server, and of programs that stand in for it, whose value is a secret."""
_SHORTEST: Final = 8
"""Values shorter than this are words, and redacting them would make logs unreadable."""
# What a secret looks like wherever it stands: after its option, its variable, its header; and the
# tokens of Hugging Face, of lswap (config/api_keys.py) and of OpenAI by their beginnings; and what
# stands before the host of a URL.
_PATTERN: Final = re.compile(
    r"(?P<before>(?:--api-key|--hf-token|-hft|--password)[ =]+"
    rf"|\b{_NAME}=" + r"|\b[Bb]earer +(?=\S{8})|\b[Bb]asic +(?=[A-Za-z0-9+/]{12})"
    r"|\b(?i:authorization|x-api-key)[\"']?: *[\"']?(?![Bb]earer|[Bb]asic))"
    r"[^\s\"',;]+"
    r"|\b(?:hf_[A-Za-z0-9]{10,}|lsk-[\w-]{10,}|sk-[\w-]{16,})"
    r"|(?<=://)[^\s/@]+(?=@)"
)
_IN_ADDRESS: Final = re.compile(r"(?<=://)[^\s/@]+(?=@)")
# What a match cannot do without, in lower case: looking for these costs a thirtieth of the pattern,
# and a child may write a gigabyte of lines.
_HINTS: Final = (
    *("api-key", "hf-token", "-hft", "--password", "token=", "key=", "secret=", "password="),
    *("passwd=", "credential", "bearer ", "basic ", "authorization", "hf_", "sk-", "://"),
)


_SHORTEST_WRITTEN: Final = 4
"""The same for a value of `${env.NAME}` in a command line or a message about the file."""


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Redactor:
    """Replaces secrets in text: those of `env` by their value, others by what they look like.

    `written` are values that the configuration has from the environment, and how it names them.
    """

    def __init__(
        self, env: Mapping[str, str] | None = None, written: Mapping[str, str] | None = None
    ) -> None:
        self._env = secret_values(env or {})
        self.learn(written or {})

    def learn(self, written: Mapping[str, str]) -> None:
        """Hide the values of another configuration."""
        known = dict.fromkeys(self._env, REDACTED)
        known |= {value: name for value, name in written.items() if len(value) >= _SHORTEST}
        # The longest first: one may be the beginning of another.
        self._values = sorted(known.items(), key=lambda one: len(one[0]), reverse=True)

    def __call__(self, text: str) -> str:
        """Return `text` without its secrets."""
        for value, shown in self._values:
            if value in text:
                text = text.replace(value, shown)
        return _PATTERN.sub(_hide, text) if _may_match(text) else text


def is_secret(name: str) -> bool:
    """Return whether the name of a variable, an option or a key says that its value is secret."""
    return (
        _SECRET_NAME.fullmatch(name.replace("-", "_")) is not None
        or f"--{name}" in _OPTIONS
        or f"-{name}" in _OPTIONS
    )


def secret_values(env: Mapping[str, str]) -> set[str]:
    """Return the values of those variables whose names say that they are secret."""
    return {
        value
        for name, value in env.items()
        if len(value) >= _SHORTEST and _SECRET_NAME.fullmatch(name)
    }


def hide(text: str, written: Mapping[str, str]) -> str:
    """Return a text with values of the environment as the configuration names them."""
    if not written:
        return text
    for value in sorted(written, key=len, reverse=True):
        if len(value) >= _SHORTEST_WRITTEN:
            text = text.replace(value, written[value]).replace(repr(value)[1:-1], written[value])
    return text


def without_user(text: str) -> str:
    """Return a text whose URLs have no user and password any more."""
    return _IN_ADDRESS.sub(REDACTED, text) if "://" in text and "@" in text else text


def redact_args(args: Iterable[str], written: Mapping[str, str] = _NOTHING) -> tuple[str, ...]:
    """Return a command line without its secrets: values of options, and of `${env.NAME}`."""
    shown: list[str] = []
    secret = False
    for word in (hide(word, written) for word in args):
        option, equals, _ = word.partition("=")
        if secret:
            shown.append(REDACTED)
        elif equals and option in _OPTIONS:
            shown.append(f"{option}={REDACTED}")
        else:
            shown.append(_PATTERN.sub(_hide, word))
        secret = not secret and word in _OPTIONS
    return tuple(shown)


def left_out(count: int, what: str) -> str:
    """Return what stands for so many lines or characters."""
    return f"[{count} {what}{'' if count == 1 else 's'} left out]"


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
