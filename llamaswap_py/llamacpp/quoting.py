"""Finds lines of llama-server's log that may quote a client's text, and leaves them out. Pure.

Errors quote parts of a request (`got exception: …`), an invalid grammar is printed, and with
`--verbose` all prompts are. The lines of a load quote no client, because no request has come yet.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.failures import as_quoted
from llamaswap_py.llamacpp.output import says_listening
from llamaswap_py.redaction import left_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TIME: Final = r"(?:\d+\.\d\d\.\d{3}\.\d{3} )?(?:[IWED] )?"
_HEAD: Final = re.compile(
    _TIME + r"(?:(?:srv|slot|que|res|cmn)\s+[\w()]*: (?:id\s+-?\d+ \| task -?\d+ \|)?|ggml_\w+: )"
)
_DEVICE: Final = re.compile(_TIME + r"  Device \d+: .{1,120}, VMM: (?:yes|no), .*VRAM: \d+ MiB")
_FIRST: Final = re.compile(_TIME + r"srv\s+llama_server: initializing \.\.\.")
_REASON: Final = re.compile(r"((?:crashed with [^:]+|ended with exit code \d+|it last said): )(.*)")
_LETTERS: Final = re.compile(r"[A-Za-z]+")
# A line after the first request is shown if it has a head and consists of these words: figures of
# slots, and changes of memory. A text that consists of these words alone does not reveal anything.
_VOCABULARY: Final = """
    a acceptance accepted all allocate allocating and are at available avg backend batch before
    best buffer by cache called cancel capping chat checkpoint checkpoints child cleaning
    compute context created creating ctx cuda cudamalloc current decode decoding detected device
    devices done draft drafts empty enabled entering eof eos erased erasing error eval exceeds
    exit exiting f failed flash for forced forcing found free freeing from full gen generated
    get gpu graphs has hip host id idle in init initialized initializing is items keep kib kv
    last launch lcp length limit llama load loaded loading lru making max mem memory metal mib
    min mmap model monitoring ms n need new no not of oldest on only or out over params parent
    past per pool pos processing progress prompt prompts queue reached reducing release released
    removing reserve restored restoring reused rocm room s save saved saving second selected seq
    server shared shift shutdown shutting sim similarity size skip skipping sleeping slot slots
    space started starting state states stdin stop stopped stopping swa t task tasks tg the
    thold thread threads time timings to token tokens total truncated try unload unloaded up
    update updating usage use used using via vram vulkan waiting waking warming warmup was while
    with without
"""
_WORDS: Final = frozenset(_VOCABULARY.split())


def without_quotes(lines: Sequence[str], *, first: bool) -> tuple[list[str], list[str]]:
    """Return a log without lines that may quote a client, and the lines that cannot quote one.

    `first`: the log begins with the start of a llama-server. That counts only if no line says that
    one listens: a llama-server with few log lines does not say it.
    """
    told: list[str | None] = []
    loaded = []
    loading = first and not any(map(says_listening, lines))
    for line in lines:
        loading = loading or _FIRST.fullmatch(line) is not None
        told.append(line if loading else _shown(line))
        if loading:
            loaded.append(line)
        loading = loading and not says_listening(line)
    shown: list[str] = []
    for is_left_out, group in groupby(told, lambda line: line is None):
        found = list(group)
        shown += [left_out(len(found), "line")] if is_left_out else filter(None, found)
    return shown, loaded


def _shown(line: str) -> str | None:
    """Return a line that quotes no client, of others only their origin; None if it is unknown."""
    head = _HEAD.match(line)
    if head is None:
        return line if _DEVICE.fullmatch(line) else None
    said = line[head.end() :]
    if says_figures(said):
        return line
    return f"{head[0].rstrip()} {left_out(len(said), 'character')}"


def without_quotation(reason: str, loaded: Iterable[str]) -> str:
    """Return why a child ended, without its last line, unless that is among `loaded`.

    `loaded` are lines that quote no client, as `without_quotes` found.
    """
    found = _REASON.search(reason)
    if found is None or says_figures(found[2]):
        return reason
    if any((line := as_quoted(one)) and found[2].startswith(line) for one in loaded):
        return reason
    return f"{reason[: found.start(2)]}[left out]"


def says_figures(text: str) -> bool:
    """Return whether a text has only figures of llama-server, and so quotes no client."""
    words = [word.lower() for word in _LETTERS.findall(text)]
    return text.isascii() and bool(words) and _WORDS.issuperset(words)
