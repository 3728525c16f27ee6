from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.units import (
    DURATION_PATTERN,
    GIB,
    MIB,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    parse_tokens,
    showable,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512MiB", 512 * MIB),
        ("512 mib", 512 * MIB),
        ("9.5GiB", 9 * GIB + GIB // 2),
        ("24g", 24 * GIB),
        ("1TB", 10**12),
        ("17b", 17),
        (" 64KiB ", 65536),
    ],
)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize("text", ["", "5", "-1GiB", "1,5GiB", "GiB", "1 GiB 2", "1m30s", "٣GiB"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="like 512MiB or"):
        parse_size(text)
    assert not re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90s", 90),
        ("1m30s", 90),
        ("1h 5m", 3900),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("2d", 172800),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert re.search(DURATION_PATTERN, text)


@pytest.mark.parametrize("text", ["", "30", "30 S", "s", "5m3", "m30s", "-5s", "never", "1:30"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="like 30s, 15m or 1h30m"):
        parse_duration(text)
    assert not re.search(DURATION_PATTERN, text)


def test_absurd_amounts_are_refused() -> None:
    with pytest.raises(ValueError, match="more than any machine"):
        parse_size("9" * 400 + "GiB")
    with pytest.raises(ValueError, match="hundred years"):
        parse_duration("9" * 400 + "h")


@given(st.text(alphabet="0123456789. smhdkKMGiB-+e", max_size=12))
def test_patterns_and_parsers_agree(text: str) -> None:
    for pattern, parse in ((SIZE_PATTERN, parse_size), (DURATION_PATTERN, parse_duration)):
        if re.search(pattern, text):
            assert parse(text) >= 0
        else:
            with pytest.raises(ValueError, match="with a unit"):
                parse(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (17, "17 B"), (1024, "1 KiB"), (512 * MIB, "512 MiB"), (GIB * 18.9, "18.9 GiB")],
)
def test_format_size(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "250 ms"),
        (2.1, "2.1 s"),
        (30, "30 s"),
        (720, "12 m"),
        (3599, "1 h"),
        (5400, "1 h 30 m"),
        (259200, "3 d"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ä, 模型, 🦙\tx\ny", "plain, ä, 模型, 🦙\tx\ny"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\r\x00\x7f\x9bm", "a\\r\\x00\\x7f\\x9bm"),
        ("a\u202eb\u2066c\u2028d", "a\\u202eb\\u2066c\\u2028d"),
    ],
)
def test_what_could_command_a_terminal_is_shown_as_it_is_written(text: str, shown: str) -> None:
    assert showable(text) == shown


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8k", 8192), (" 8.5 K ", 8704), ("1m", MIB), ("8kk", None), ("-8k", None), ("2048m", None)],
)
def test_tokens_with_a_unit_are_read_as_people_write_them(text: str, tokens: int | None) -> None:
    assert parse_tokens(text) == tokens


def test_more_tokens_than_llama_server_counts_are_not_a_number_of_tokens() -> None:
    assert parse_tokens("9" * 400 + "k") is None
