"""Tokens of an answer, from its last bytes, in every shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.llamacpp.token_counts import tokens_of


@pytest.mark.parametrize(
    ("tail", "want"),
    [
        (b'{"usage":{"completion_tokens":7,"prompt_tokens":11,"total_tokens":18}}', (11, 7)),
        (b'data: {"timings":{"prompt_n":3,"predicted_n":9}}\n\ndata: [DONE]\n\n', (3, 9)),
        (b'{"tokens_predicted": 4, "tokens_evaluated": 5, "timings": {"prompt_n": 1}}', (5, 4)),
        (
            b'{"input_tokens":6,"output_tokens":1}\n\ndata: {"usage":{"output_tokens":8}}',
            (6, 8),
        ),
        (b"", (0, 0)),
        (b"plain text", (0, 0)),
        (b'"prompt_tokens": null', (0, 0)),
    ],
)
def test_every_shape(tail: bytes, want: tuple[int, int]) -> None:
    assert tokens_of(tail) == want


@given(st.binary())
def test_no_bytes_break_it(tail: bytes) -> None:
    assert min(tokens_of(tail)) >= 0
