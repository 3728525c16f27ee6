"""Run llama-fit-params: what would a model take, without loading it.

What llama-fit-params is asked, and what it answers. Pure.

It knows fewer options than llama-server, has other defaults (one slot, no unified cache) and no
draft model or projector: docs/design/engine.md, "Memory".

Turn what llama-fit-params answered into what llama-server will take. Pure.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from llamaswap_py.estimate.formula import (
    PAD,
    Context,
    context_of,
    growing_parts,
    is_recurrent,
    lay_out,
    without_spare_logits,
)
from llamaswap_py.estimate.types import HOST, EstimateError, Part, total
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.memory_settings import Settings
from llamaswap_py.units import MIB

TIMEOUT: Final = 60.0
"""Seconds for one run; it takes 0.3 s, and a few seconds where a GPU driver wakes up."""
DEVICE_CHARGE: Final = 512 * MIB
"""What a run takes of each GPU it sees while it lasts: a driver context, nothing else."""
_SCRUBBED: Final = ("LLAMA_ARG_", "LLAMA_API_KEY", "LLAMA_SERVER_")
_SHOWN: Final = 3


class DryRuns:
    """Runs llama-fit-params, one at a time: each opens a context on every GPU it sees."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._turn = anyio.Lock()
        self._options: dict[Path, dict[str, int]] = {}
        self._stuck: dict[Path, EstimateError] = {}

    async def options(self, binary: Path) -> Mapping[str, int]:
        """Return the option names of this llama-fit-params, and how many words follow each."""
        if binary not in self._options:
            text = await self._run(binary, ["--help"], {})
            table = parse_options(text)
            self._options[binary] = {
                name: 0 if name in option.negated else option.values
                for name, option in table.items()
            }
        return self._options[binary]

    async def answer(self, binary: Path, args: Sequence[str], env: Mapping[str, str]) -> str:
        """Return all that a run prints.

        Raises EstimateError when it cannot be run, fails, or takes longer than the time limit.
        """
        return await self._run(binary, args, env)

    async def _run(self, binary: Path, args: Sequence[str], env: Mapping[str, str]) -> str:
        async with self._turn:
            if (known := self._stuck.get(binary)) is not None:
                raise known  # once is enough: everybody behind it would wait as long again
            try:
                with anyio.fail_after(self._timeout):
                    status, output = await _run_to_end([str(binary), *args], _environment(env))
            except TimeoutError as error:
                self._stuck[binary] = stuck = EstimateError(
                    f"{binary.name} did not end within {self._timeout:.0f} s"
                )
                raise stuck from error
            except OSError as error:
                raise EstimateError(f"{binary} cannot be run ({error.strerror})") from error
        printed = output.decode(errors="replace")
        if status != 0:
            lines = [line.strip() for line in printed.splitlines() if line.strip()]
            tail = " / ".join(line[:200] for line in lines[-_SHOWN:]) or "it said nothing"
            raise EstimateError(f"{binary.name} failed with status {status}: {tail}")
        return printed


async def _run_to_end(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, bytes]:
    """Return exit status and output. However it is left, nothing of the process is.

    `anyio.run_process` would wait for the end of a process when its task is cancelled just once.
    """
    process = await anyio.open_process(
        argv,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )
    async with process:
        try:
            assert process.stdout is not None
            output = b"".join([chunk async for chunk in process.stdout])
            return await process.wait(), output
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """As a child gets it: without what llama.cpp would read from our own environment or files."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_SCRUBBED)}
    return {**inherited, **env, "XDG_CONFIG_HOME": "/nonexistent"}


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


_NUMBER: Final = re.compile(r"(\D+)(\d+)")
_ALIKE: Final = 0.02


def dry_parts(
    output: str,
    headers: Sequence[Header],
    settings: Settings,
    gpus: Sequence[str],
    repackable: Collection[str],
) -> list[Part]:
    """Return the parts of one model from a dry run's output and its shards' headers.

    Without headers (a file that only the engine can read) the answer is taken as it is.
    Raises EstimateError when the answer is no good.
    """
    parts = [_renamed(part, gpus) for part in parse_answer(output)]
    if not headers:
        return parts
    header = headers[0]
    context = context_of(header, settings)
    layout = lay_out(headers, settings, gpus, repackable)
    output_device = layout.layer_devices[-1]
    corrected: list[Part] = []
    for part in parts:
        size = part.size
        if part.what == "compute" and part.device == output_device:
            size = without_spare_logits(size, header, settings, context)
        corrected.append(Part(part.device, part.what, size, part.grows))
    if extra := window_correction(settings, header, context):
        held = total(part for part in parts if part.what == "context")
        corrected.append(Part(max(held, key=held.__getitem__, default=HOST), "context", extra))
    moved = sum(part.size for part in parts if part.what == MOVED)
    if not has_table(output) and layout.repacked:
        moved = layout.repacked
        corrected.append(Part(HOST, MOVED, moved))
    if settings.mapped:
        as_thought = abs(moved - layout.repacked) <= _ALIKE * moved
        again = layout.mapped_again if as_thought else moved
        corrected.append(Part(HOST, "mapped pages of moved weights", again))
    return corrected + growing_parts(header, settings, context, gpus=gpus)


def _renamed(part: Part, gpus: Sequence[str]) -> Part:
    """Give a device its own name: a child numbers the GPUs that it sees from zero."""
    if part.device == HOST:
        return part
    match = _NUMBER.fullmatch(part.device)
    number = int(match[2]) if match else len(gpus)
    if match is None or number >= len(gpus) or not gpus[number].startswith(match[1]):
        known = ", ".join(gpus) or "the host only"
        raise EstimateError(f"llama-fit-params counts on {part.device}, but there is {known}")
    return Part(gpus[number], part.what, part.size, part.grows)
