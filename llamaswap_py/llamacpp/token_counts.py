"""How many tokens an answer took, read from its last bytes. Pure.

They say it as OpenAI's `usage`, as Anthropic's, and as llama-server's own `timings` and counts
(server-task.cpp).
"""

from __future__ import annotations

import re
from typing import Final

_IN: Final = (b'"prompt_tokens"', b'"input_tokens"', b'"tokens_evaluated"')
_OUT: Final = (b'"completion_tokens"', b'"output_tokens"', b'"tokens_predicted"')
_TIMED_IN: Final = (b'"prompt_n"',)
_TIMED_OUT: Final = (b'"predicted_n"',)
_USAGE: Final = 128
"""In the last so many bytes of an OpenAI answer, `usage` has both figures."""
# As llama-server writes it (server-task.cpp).
_USUAL: Final = re.compile(
    rb'"usage":\{"completion_tokens":(\d{1,12}),"prompt_tokens":(\d{1,12})[,}]'
)
_PROMPT: Final = re.compile(rb'"prompt_tokens":(\d{1,12})[,}]')
_COMPLETION: Final = re.compile(rb'"completion_tokens":(\d{1,12})[,}]')
_FIGURE: Final = re.compile(rb"\s*:\s*(\d{1,12})")


def tokens_of(tail: bytes) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer; 0 for a figure that is not in the tail.

    The last figure counts, because streams in Anthropic's form repeat it while it grows.
    """
    start = tail.rfind(b'"usage"')
    if start >= 0:
        usual = _USUAL.match(tail, start)
        if usual is not None:
            return int(usual[2]), int(usual[1])
        usage = tail[start : start + _USAGE]
        prompt, answer = _PROMPT.search(usage), _COMPLETION.search(usage)
        if prompt is not None and answer is not None:
            return int(prompt[1]), int(answer[1])
    if b'_tokens"' not in tail and b'_n"' not in tail and b'"tokens_' not in tail:
        return 0, 0
    return _last(_IN, tail) or _last(_TIMED_IN, tail), _last(_OUT, tail) or _last(_TIMED_OUT, tail)


def _last(names: tuple[bytes, ...], tail: bytes) -> int:
    """Return the last figure that follows one of the names; 0 if there is none."""
    best, figure = -1, 0
    for name in names:
        at = tail.rfind(name)
        while at > best:
            found = _FIGURE.match(tail, at + len(name))
            if found is not None:
                best, figure = at, int(found[1])
            at = tail.rfind(name, 0, at)
    return figure
