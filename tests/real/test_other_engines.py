"""Files that were written for an earlier or a later llama-server than the one in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

# The same program without names that came later, in its help and in what it takes.
_EARLIER = """#!/bin/bash
for word in "$@"; do case "$word" in
--temperature|--fit|-fit|--log-jsonl|--load-mode) echo "error: invalid argument: $word" >&2; exit 1
esac; done
if [ "$1" = --help ]; then
  {engine} --help | sed -e 's/--temp, --temperature N/--temp N               /' \\
    -e '/^-fit,/,/LLAMA_ARG_FIT)/d' -e '/^--log-jsonl/,/LLAMA_ARG_LOG_JSONL)/d' \\
    -e 's/^-lm,   --load-mode MODE /--mmap, --no-mmap          /'
  exit
fi
words=()
for word in "$@"; do case "$word" in
--no-mmap) words+=(--load-mode none);;
*) words+=("$word")
esac; done
exec {engine} "${{words[@]}}"
"""


def _earlier(lab: Lab) -> str:
    path = lab.folder / "llama-server"
    path.write_text(_EARLIER.format(engine=lab.engine))
    path.chmod(0o755)
    return str(path)


async def test_each_engine_is_told_in_its_own_words(lab: Lab) -> None:
    """`temp` is written once; `temperature` and `load-mode` are unknown to the earlier engine."""
    said: dict[str, dict[str, Any]] = {
        "short": {"temp": 0.5},
        "long": {"temperature": 0.5},
        "mode": {"load-mode": "none"},
        "switch": {"no-mmap": True},
    }
    here = {f"{name}-here": lab.preset("alpha", args=args) for name, args in said.items()}
    there = {
        f"{name}-there": lab.preset("alpha", args=args, engine=_earlier(lab))
        for name, args in said.items()
    }
    async with lab.lswap(here | there) as lswap:
        words = {}
        for model in here | there:
            assert await lswap.chat(model) == lab.sentence("alpha")
            words[model] = (await lswap.model(model)).args
    assert "--temp" in words["short-here"]
    assert "--temperature" in words["long-here"]
    assert "--temp" in words["short-there"]
    assert "--temp" in words["long-there"]
    for model in ("mode-here", "switch-here"):
        assert words[model][words[model].index("--load-mode") + 1] == "none"
    for model in ("mode-there", "switch-there"):
        assert "--no-mmap" in words[model]
