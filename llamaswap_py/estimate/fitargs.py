"""What llama-fit-params is asked, and what it answers. Pure.

It knows fewer options than llama-server, has other defaults (one slot, no unified cache) and no
draft model or projector: docs/design/engine.md, "Memory".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from llamaswap_py.estimate.attention import PAD, Context, is_recurrent
from llamaswap_py.estimate.records import HOST, EstimateError, Part
from llamaswap_py.estimate.settings import Settings
from llamaswap_py.gguf.header import Header
from llamaswap_py.units import MIB

_ALWAYS: Final = ("--fit", "off", "--fit-print", "on", "--log-jsonl", "--log-verbosity", "1")
_OURS: Final = frozenset(
    {
        *(
            "--model",
            "-m",
            "--fit",
            "-fit",
            "--fit-print",
            "-fitp",
            "--log-jsonl",
            "--no-log-jsonl",
        ),
        *("--parallel", "-np", "--log-verbosity", "--verbosity", "-lv", "-v", "--verbose"),
        *("--log-file", "--log-disable", "--ctx-size", "-c", "--fit-target", "-fitt", "-fitc"),
        *("--threads", "-t", "--lora", "--lora-scaled", "--control-vector", "--offline"),
    }
)
_DRAFT_OPTIONS: Final = ("draft", "spec-", "-md", "-ngld", "-devd", "-ctkd", "-ctvd", "-otd")
_MAX_MIB: Final = 2**30
_TABLE: Final = '{"type":"fit_memory_breakdown"'
_PLAIN: Final = re.compile(r"(\w+) (\d{1,12}) (\d{1,12}) (\d{1,12})", re.ASCII)


class _Row(msgspec.Struct):
    kind: str
    name: str
    model: int
    context: int
    compute: int


class _Data(msgspec.Struct):
    unit: str
    rows: list[_Row]


class _Line(msgspec.Struct):
    type: str
    data: _Data


def fit_args(
    model: str,
    args: Sequence[str],
    settings: Settings,
    header: Header | None,
    known: Mapping[str, int],
) -> tuple[str, ...]:
    """Return the words after llama-fit-params that ask for what llama-server does with `args`.

    `known` maps the option names of this llama-fit-params to how many words follow them. A cache
    that slots share is asked for as one slot's; where state is kept per slot, as that many slots'.
    """
    words = ["--model", model, *_ALWAYS]
    place = 0
    while place < len(args):
        word = args[place]
        place += 1
        count = known.get(word)
        if count is None or word in _OURS or any(part in word for part in _DRAFT_OPTIONS):
            continue
        words += [word, *args[place : place + count]]
        place += count
    per_slot = not settings.unified or (header is not None and is_recurrent(header))
    slots = settings.slots if per_slot else 1
    words += ["--parallel", str(slots)]
    if settings.context:
        words += ["--ctx-size", str(_rounded_up(settings.context, slots))]
    return tuple(words)


def draft_args(settings: Settings, args: Sequence[str]) -> tuple[str, ...]:
    """Return the command line of the main model rewritten for its draft model."""
    draft = settings.draft
    assert draft is not None
    words = _without(args, {"-ctk", "--cache-type-k", "-ctv", "--cache-type-v"})
    words = _without(words, {"-ngl", "--gpu-layers", "--n-gpu-layers", "-ncmoe", "--n-cpu-moe"})
    words = _without(words, {"-cmoe", "--cpu-moe"}, values=0)
    words = [*words, "--cache-type-k", draft.type_k, "--cache-type-v", draft.type_v]
    if draft.gpu_layers < 10**6:
        words += ["--n-gpu-layers", str(draft.gpu_layers)]
    if draft.device:
        words = [*_without(words, {"-dev", "--device"}), "--device", draft.device]
    return tuple(words)


def _without(args: Sequence[str], names: Collection[str], *, values: int = 1) -> list[str]:
    kept: list[str] = []
    place = 0
    while place < len(args):
        if args[place] in names:
            place += 1 + values
            continue
        kept.append(args[place])
        place += 1
    return kept


def _rounded_up(context: int, slots: int) -> int:
    """Each stream is rounded up to a multiple of 256, of which the whole must be made."""
    share = -(-context // slots)
    return -(-share // PAD) * PAD * slots


def has_table(output: str) -> bool:
    """Return whether the JSON line is there.

    Its log is written by a thread that nobody waits for at exit (common/log.cpp), so a quick run on
    a busy machine may end before the line is out: ask again.
    """
    return _TABLE in output


def parse_answer(output: str) -> list[Part]:
    """Return the parts that llama-fit-params printed, under the engine's names of devices.

    Its figures are MiB cut down to whole ones: half of one is added to each. Memory of extra buffer
    types (weights rearranged for the CPU) is the host's, and stays a part of its own; the plain
    lines, taken where the table is missing, do not tell it.
    Raises EstimateError when there are no figures or they are nonsense.
    """
    rows = _table(output) if has_table(output) else _plain_lines(output)
    if not rows:
        raise EstimateError("llama-fit-params counted nothing at all")
    parts: list[Part] = []
    for row in rows:
        device = row.name if row.kind == "device" else HOST
        for what in ("model", "context", "compute"):
            size = getattr(row, what)
            if not 0 <= size <= _MAX_MIB:
                raise EstimateError(f"llama-fit-params said {size} MiB of {what} for {row.name}")
            label = "weights" if what == "model" else what
            if row.kind == "buffer_type" and what == "model":
                label = MOVED
            grows = what == "compute" and device == HOST
            if size:
                parts.append(Part(device, label, size * MIB + MIB // 2, grows))
    return parts


MOVED: Final = "rearranged weights"


def _table(output: str) -> list[_Row]:
    line = output[output.index(_TABLE) :].partition("\n")[0]
    try:
        data = msgspec.json.decode(line, type=_Line).data
    except msgspec.MsgspecError as error:
        raise EstimateError(f"llama-fit-params answered in another form: {error}") from error
    if data.unit != "MiB":
        raise EstimateError(f"llama-fit-params counts in {data.unit}, not in MiB")
    return data.rows


def _plain_lines(output: str) -> list[_Row]:
    rows = []
    for line in output.splitlines():
        if match := _PLAIN.fullmatch(line.strip()):
            kind = "host" if match[1] == "Host" else "device"
            rows.append(_Row(kind, match[1], *(int(each) for each in match.groups()[1:])))
    if not rows:
        raise EstimateError("llama-fit-params printed no figures")
    return rows


def window_correction(settings: Settings, header: Header, context: Context) -> int:
    """Return the bytes of sliding-window cache that a dry run with one slot leaves out.

    Slots that share a cache need a window each in it (llama-kv-cache-iswa.cpp).
    """
    if not settings.unified or settings.slots == 1 or is_recurrent(header):
        return 0
    if settings.whole_window or not context.window_layer_bytes:
        return 0
    window = header.integer("attention.sliding_window")
    tokens = min(settings.micro_batch, settings.batch, context.cells)
    alone = -(-min(context.cells, window + tokens) // PAD) * PAD
    return max(context.window_cells - alone, 0) * context.window_layer_bytes
