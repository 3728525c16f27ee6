"""Names of split models."""

from __future__ import annotations

import pytest

from llamaswap_py.gguf import is_first_shard, shard_paths


def test_a_whole_model_is_one_file() -> None:
    assert shard_paths("/m/qwen.gguf") == ("/m/qwen.gguf",)
    assert is_first_shard("/m/qwen.gguf")


def test_all_shards_are_named() -> None:
    assert shard_paths("/m/big-00001-of-00003.gguf") == (
        "/m/big-00001-of-00003.gguf",
        "/m/big-00002-of-00003.gguf",
        "/m/big-00003-of-00003.gguf",
    )
    assert is_first_shard("/m/big-00001-of-00003.gguf")
    assert not is_first_shard("/m/big-00002-of-00003.gguf")


@pytest.mark.parametrize(
    "name", ["a-00001-of-00000.gguf", "a-00001-of-99999.gguf", "a-1-of-2.gguf"]
)
def test_impossible_counts_are_plain_names(name: str) -> None:
    assert shard_paths(name) == (name,)
