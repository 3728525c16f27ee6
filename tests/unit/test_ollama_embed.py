"""Which tokens end an input, so that one that was cut ends with them too."""

from __future__ import annotations

import pytest

from llamaswap_py.api.ollama.embed import closing

BOS, EOS, CLS, SEP = 1, 2, 101, 102


@pytest.mark.parametrize(
    ("tokens", "none", "expected"),
    [
        ([CLS, 7, 8, SEP], [CLS, SEP], [SEP]),
        ([BOS, 7, 8], [BOS], []),
        ([7, 8, EOS], [EOS], [EOS]),
        ([BOS, 7, 8, EOS], [BOS, EOS], [EOS]),
        ([7, 8], [], []),
    ],
)
def test_the_end(tokens: list[int], none: list[int], expected: list[int]) -> None:
    assert closing(tokens, none) == expected
