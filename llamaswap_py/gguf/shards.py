"""Names of the files of a split model: `NAME-00001-of-00003.gguf` (llama.cpp's gguf-split)."""

from __future__ import annotations

import re
from typing import Final

_SHARD: Final = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL
)
MAX_SHARDS: Final = 1000


def shard_paths(path: str) -> tuple[str, ...]:
    """Return all files of a model by its first file `path`; only that one if it is not split."""
    match = _SHARD.fullmatch(path)
    if match is None or not 0 < int(match["count"]) <= MAX_SHARDS:
        return (path,)
    numbers = range(1, int(match["count"]) + 1)
    return tuple(f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in numbers)


def is_first_shard(path: str) -> bool:
    """Return whether a load may begin with this file: it is not split, or it is the first shard."""
    match = _SHARD.fullmatch(path)
    return match is None or int(match["number"]) == 1
