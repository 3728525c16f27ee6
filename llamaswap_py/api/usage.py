"""How many tokens an answer took, read from its last bytes. Pure.

OpenAI's `usage`, Anthropic's, and llama-server's own `timings` and counts (server-task.cpp).
"""

from __future__ import annotations

import re
from typing import Final

_IN: Final = re.compile(rb'"(?:prompt_tokens|input_tokens|tokens_evaluated)"\s*:\s*(\d{1,12})')
_OUT: Final = re.compile(
    rb'"(?:completion_tokens|output_tokens|tokens_predicted)"\s*:\s*(\d{1,12})'
)
_TIMED_IN: Final = re.compile(rb'"prompt_n"\s*:\s*(\d{1,12})')
_TIMED_OUT: Final = re.compile(rb'"predicted_n"\s*:\s*(\d{1,12})')


def tokens_of(tail: bytes) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer; 0 for what the tail does not say.

    The last figure counts: streams of Anthropic's shape repeat it while it grows.
    """
    if b'_tokens"' not in tail and b'_n"' not in tail and b'"tokens_' not in tail:
        return 0, 0
    return _last(_IN, tail) or _last(_TIMED_IN, tail), _last(_OUT, tail) or _last(_TIMED_OUT, tail)


def _last(pattern: re.Pattern[bytes], tail: bytes) -> int:
    found = pattern.findall(tail)
    return int(found[-1]) if found else 0
