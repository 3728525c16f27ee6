"""GGUF headers: what is read from good ones, and what is said of bad ones."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaswap_py.estimate.files import open_header
from llamaswap_py.gguf import ArrayInfo, GgufError, Header, read_header
from llamaswap_py.gguf.header import KINDS
from tests.estimate.gguf_bytes import header, pair, reader, tensor, text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyModel

PAIRS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.attention.head_count_kv": [4, 2],
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "b", "ü"],
}
TENSORS = (tensor("one", (64, 3), 0, 0), tensor("two", (256,), 12, 768))
GOOD = header(PAIRS, TENSORS, data=768 + 144)


def read(content: bytes) -> Header:
    return read_header(reader(content), len(content))


def test_a_good_header() -> None:
    found = read(GOOD)
    assert found.version == 3
    assert found.architecture == "llama"
    assert found.integer("block_count") == 2
    assert found.per_layer("attention.head_count_kv", 3, default=9) == (4, 2, 9)
    assert found.metadata["tokenizer.ggml.add_bos_token"] is True
    assert found.metadata["tokenizer.ggml.tokens"] == ArrayInfo(3)
    one, two = found.tensors
    assert (one.name, one.kind, one.shape, one.size) == ("one", "F32", (64, 3), 768)
    assert (two.kind, two.size, two.offset) == ("Q4_K", 144, found.data_start + 768)
    assert found.data_start % 32 == 0
    assert found.data_start + 768 + 144 == len(GOOD)


def test_what_is_absent_has_its_default() -> None:
    found = read(header({}, ()))
    assert found.architecture == ""
    assert found.get("block_count") is None
    assert found.integer("block_count", 7) == 7
    assert found.per_layer("x", 2, default=5) == (5, 5)


@pytest.mark.parametrize("cut", [0, 3, 4, 10, 23, 24, 60, 150, len(GOOD) - 145, len(GOOD) - 1])
def test_a_file_cut_off_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(GgufError, match=r"cut off|not a GGUF"):
        read(GOOD[:cut])


def test_every_cut_is_refused_and_nothing_else_happens() -> None:
    for cut in range(len(GOOD)):
        with pytest.raises(GgufError):
            read(GOOD[:cut])


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


BAD = {
    "not a GGUF file": b"PK\x03\x04" + bytes(100),
    "GGUF version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "tensors, more than any model": counts(2**63, 0),
    "keys of metadata, more than": counts(0, 2**40),
    "key 0 claims to be": counts(0, 1) + struct.pack("<Q", 2**60),
    "unknown type 13": counts(0, 1) + text("k") + struct.pack("<I", 13) + bytes(16),
    "claims 1,099,511,627,776 elements": counts(0, 1)
    + text("k")
    + struct.pack("<IIQ", 9, 4, 2**40),
    "strings, more than the file": counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**20),
    "arrays, more than the file": counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 2**20),
    "elements of the unknown type 77": counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 77, 1),
    "the key k twice": counts(0, 2) + 2 * pair("k", 1),
    "nests arrays 4 deep": counts(0, 1)
    + text("k")
    + struct.pack("<I", 9)
    + 8 * struct.pack("<IQ", 9, 1)
    + bytes(64),
    "not a power of two": header({"general.alignment": 48}),
    "alignment is 0": header({"general.alignment": 0}),
    "has 9 dimensions": counts(1, 0) + text("t") + struct.pack("<I", 9) + bytes(99),
    "unknown type 31": header({}, [tensor("t", (32,), 31, 0)], data=64),
    "not whole blocks of Q4_0": header({}, [tensor("t", (33,), 2, 0)], data=64),
    "an impossible shape": header({}, [tensor("t", (0, 4), 0, 0)], data=64),
    r"an impossible shape: \(9223372036854775808": header(
        {}, [tensor("t", (2**63, 2**63), 0, 0)], data=64
    ),
    "not aligned to 32 bytes": header({}, [tensor("t", (8,), 0, 4)], data=64),
    "ends 64 bytes after the file": header({}, [tensor("t", (32,), 0, 0)], data=64),
    "two tensors of the same name": header({}, 2 * [tensor("t", (8,), 0, 0)], data=64),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_headers_are_named(message: str) -> None:
    with pytest.raises(GgufError, match=message):
        read(BAD[message])


def test_reading_a_large_vocabulary_asks_for_pieces() -> None:
    """A header of megabytes is walked through in windows; its strings are never kept."""
    words = [f"word{number:06}" for number in range(100_000)]
    content = header({"general.architecture": "llama", "tokenizer.ggml.tokens": words})
    asked: list[int] = []

    def read_at(at: int, count: int) -> bytes:
        asked.append(count)
        return content[at : at + count]

    found = read_header(read_at, len(content))
    assert found.metadata["tokenizer.ggml.tokens"] == ArrayInfo(100_000)
    assert len(asked) < 20
    assert max(asked) <= 256 * 1024


def test_a_file_that_shrinks_while_it_is_read() -> None:
    with pytest.raises(GgufError, match="became shorter"):
        read_header(reader(GOOD[:100]), len(GOOD))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=12))
def test_damage_is_an_error_or_another_header(at: int, damage: bytes) -> None:
    content = GOOD[:at] + damage + GOOD[at + len(damage) :]
    try:
        found = read(content[: len(GOOD)])
    except GgufError:
        return
    assert all(one.offset + one.size <= len(GOOD) for one in found.tensors)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_noise_after_the_magic_number(noise: bytes) -> None:
    with contextlib.suppress(GgufError):
        assert read(b"GGUF\x03\x00\x00\x00" + noise).tensors == ()


def test_the_writer_of_the_format_agrees(tiny_model: TinyModel) -> None:
    path = tiny_model("agree", "hello there", layers=3, width=96, pad_bytes=1 << 20)
    ours = open_header(str(path))
    theirs = gguf.GGUFReader(path)
    assert [(one.name, one.offset, one.size) for one in ours.tensors] == [
        (one.name, int(one.data_offset), int(one.n_bytes)) for one in theirs.tensors
    ]
    assert ours.integer("block_count") == 3
    assert ours.integer("expert_count") == int(theirs.fields["llama.expert_count"].parts[-1][0])


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(PAIRS))
    first = open_header(str(path))
    assert open_header(str(path)) is first
    path.write_bytes(header({**PAIRS, "llama.context_length": 4096}))
    assert open_header(str(path)).integer("context_length") == 4096


def test_block_sizes_agree_with_the_writer() -> None:
    sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    # ggml.c: a block of Q8_1 has two half floats; gguf-py says 40, from when they were whole ones.
    sizes[9] = (32, 36)
    ours = {number: (kind.block, kind.size) for number, kind in KINDS.items()}
    assert {number: size for number, size in sizes.items() if number in ours} == ours


@pytest.mark.parametrize("name", ["absent.gguf", "folder"])
def test_what_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    from llamaswap_py.estimate.types import EstimateError

    (tmp_path / "folder").mkdir()
    with pytest.raises(EstimateError, match=name):
        open_header(str(tmp_path / name))
