"""Runs llama-fit-params, which works out a model's memory without loading it, and reads its output.

It has fewer options than llama-server, other defaults (one slot, no unified cache), and does not
know draft models or projectors: docs/design/engine.md, "Memory".
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import anyio
import msgspec

from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp.engine_output import MOST_OUTPUT, too_long
from llamaswap_py.llamacpp.env_variables import clean_environment
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.memory_settings import PAD, Settings, rpc_endpoints
from llamaswap_py.units import MIB

TIMEOUT: Final = 60.0
"""Seconds for one run; it takes 0.3 s, and a few seconds where a GPU driver wakes up."""
_SHOWN: Final = 3

Purpose: TypeAlias = Literal["model", "context", "compute"]


_NOT_STARTED: Final = re.compile(r"what\(\): +(failed to (?:load model|create llama_context))")
_CAUSE: Final = re.compile(r'"level":"error","msg":"(?:\w+: )?(?P<what>[^"]+?)(?:\\n)?"')
_FOR_MEMORY: Final = re.compile(r"memory|alloc|buffer", re.IGNORECASE)


def refusal_in(said: str, *, on_host: bool) -> str:
    """Return why the engine refused a model or its options, by the words of a run that failed.

    "" if it did not, or if the reason may be a lack of memory at that moment. Its last lines may be
    lost. Then it is a refusal only `on_host` alone: a dry run allocates nothing there.
    """
    ended, cause = _NOT_STARTED.search(said), _CAUSE.search(said)
    if ended is None or (cause is None and not on_host):
        return ""
    if cause is not None and _FOR_MEMORY.search(cause["what"]):
        return ""
    return ended[1] if cause is None else cause["what"]


class FitParamsError(LswapError):
    """Raised when llama-fit-params cannot be run, or gives no figures that can be used."""


class Refusal(NamedTuple):
    """A tensor that a device cannot hold, or cannot compute with, because of its size.

    `tensor` is the engine's name of it, `device` the engine's name of the device.
    """

    tensor: str
    device: str


class FitParamsAbortError(FitParamsError):
    """Raised when llama-fit-params aborts, as llama-server would with the same options.

    `refusal` is the reason, if it is one that applies to other options too.
    """

    def __init__(self, message: str, refusal: Refusal | None) -> None:
        super().__init__(message)
        self.refusal = refusal


class Figure(NamedTuple):
    """Bytes of one device for one purpose; `device` is the engine's name, None for main memory.

    `moved`: the weights are rearranged for the CPU, into a separate buffer.
    """

    device: str | None
    purpose: Purpose
    size: int
    moved: bool = False


# Running it


class DryRuns:
    """Runs llama-fit-params, one at a time: each opens a context on every GPU it sees."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._turn = anyio.Lock()
        self._options: dict[Path, dict[str, int]] = {}
        self._stuck: dict[tuple[Path, tuple[str, ...]], FitParamsError] = {}

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

        Raises FitParamsError when it cannot be run, fails, or takes longer than the time limit.
        """
        return await self._run(binary, args, env)

    async def _run(self, binary: Path, args: Sequence[str], env: Mapping[str, str]) -> str:
        servers = rpc_endpoints(args)
        async with self._turn:
            if (known := self._stuck.get((binary, servers))) is not None:
                raise known  # once is enough: each further run would take as long again
            try:
                with anyio.fail_after(self._timeout):
                    status, output = await _run_to_end(
                        [str(binary), *args], {**clean_environment(os.environ), **env}
                    )
            except TimeoutError as error:
                why = ": an RPC server may be busy with another client" if servers else ""
                self._stuck[binary, servers] = stuck = FitParamsError(
                    f"{binary.name} did not end within {self._timeout:.0f} s{why}"
                )
                raise stuck from error
            except OSError as error:
                raise FitParamsError(f"{binary} cannot be run ({error.strerror})") from error
        printed = output.decode(errors="replace")
        if status in _ABORTED and (said := _reason_to_abort(printed)):
            raise FitParamsAbortError(f"{binary.name} aborted: {said}", read_refusal(printed))
        if status != 0:
            lines = [line.strip() for line in printed.splitlines() if line.strip()]
            tail = " / ".join(line[:200] for line in lines[-_SHOWN:]) or "it said nothing"
            raise FitParamsError(f"{binary.name} failed with status {status}: {tail}")
        return printed


_ABORTED: Final = (-signal.SIGABRT, 128 + signal.SIGABRT)
# What GGML_ABORT and GGML_ASSERT print: the place in the source, then the message (ggml.c).
_PLACE: Final = re.compile(r"^\S+\.(?:c|cc|cpp|cu|h|m|mm):\d+: (?P<why>.+)", re.MULTILINE)
_FULL: Final = re.compile(r"out of memory|(?:CUDA|ROCm|HIP|MUSA|SYCL) error", re.IGNORECASE)
_REFUSED: Final = re.compile(
    r"pre-allocated tensor \((?P<tensor>[^ )]+).*?\) in a buffer \((?P<device>[^)]+)\)"
)


def _reason_to_abort(printed: str) -> str:
    """Return why the engine cannot run with these options; "" if it may run another time.

    A device that is full now, or a driver that fails, says nothing of the options.
    """
    found = _PLACE.search(printed)
    return "" if found is None or _FULL.search(printed) else found["why"].strip()


def read_refusal(printed: str) -> Refusal | None:
    """Return which tensor was too large for which device, by the lines of a llama.cpp program.

    A backend refuses each operation on a tensor above its buffer limit. A cache cannot go elsewhere
    then (ggml-backend.cpp, ggml_backend_sched_backend_id_from_cur).
    """
    found = _REFUSED.search(printed)
    return None if found is None else Refusal(found["tensor"], found["device"])


def is_cache_tensor(name: str) -> bool:
    """Return whether the engine calls a K or V tensor so; a recurrent state has other names."""
    return name.startswith(("cache_k_l", "cache_v_l"))


async def _run_to_end(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, bytes]:
    """Return exit status and output; even if cancelled, it leaves no process behind.

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
            output = bytearray()
            async for chunk in process.stdout:
                output += chunk
                if len(output) > MOST_OUTPUT:
                    raise FitParamsError(too_long(os.path.basename(argv[0])).message)
            return await process.wait(), bytes(output)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


# What it is asked

_ALWAYS: Final = ("--fit", "off", "--fit-print", "on")
_JSON: Final = "--log-jsonl"
_IF_KNOWN: Final = ((_JSON,), ("--log-verbosity", "1"))
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


def fit_args(
    model: str,
    args: Sequence[str],
    settings: Settings,
    known: Mapping[str, int],
    *,
    per_slot: bool,
) -> tuple[str, ...]:
    """Return the words after llama-fit-params that ask for what llama-server does with `args`.

    `known` maps the option names of this llama-fit-params to how many words follow them.
    `per_slot`: each slot has its own state, so the words ask for that many slots. A cache that the
    slots share is asked for as one slot's.
    """
    words = ["--model", model, *_ALWAYS]
    words += [word for option in _IF_KNOWN if option[0] in known for word in option]
    place = 0
    while place < len(args):
        word = args[place]
        place += 1
        count = known.get(word)
        if count is None or word in _OURS or any(part in word for part in _DRAFT_OPTIONS):
            continue
        words += [word, *args[place : place + count]]
        place += count
    slots = settings.slots if per_slot or not settings.unified else 1
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
    """Return the context whose shares for the streams are rounded up to multiples of 256."""
    share = -(-context // slots)
    return -(-share // PAD) * PAD * slots


# What it answers

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


def prints_table(known: Collection[str]) -> bool:
    """Return whether a llama-fit-params with these options prints the JSON line (b11434 does)."""
    return _JSON in known


def has_table(output: str) -> bool:
    """Return whether the JSON line is there.

    A thread writes its log, and the program does not wait for it at exit (common/log.cpp). So a
    quick run on a busy machine may end before the line is written: run it again.
    """
    return _TABLE in output


def read_figures(output: str) -> Iterator[Figure]:
    """Yield the figures that llama-fit-params printed.

    The figures are rounded down to whole MiB, so half of one is added to each. The plain lines,
    used if the table is missing, do not tell which weights are rearranged. Raises FitParamsError if
    the output has no figures, or impossible ones.
    """
    rows = _table(output) if has_table(output) else _plain_lines(output)
    if not rows:
        raise FitParamsError("llama-fit-params counted nothing at all")
    for row in rows:
        sizes: dict[Purpose, int] = {
            "model": row.model,
            "context": row.context,
            "compute": row.compute,
        }
        for purpose, size in sizes.items():
            if not 0 <= size <= _MAX_MIB:
                raise FitParamsError(
                    f"llama-fit-params said {size} MiB of {purpose} for {row.name}"
                )
            if size:
                moved = row.kind == "buffer_type" and purpose == "model"
                device = row.name if row.kind == "device" else None
                yield Figure(device, purpose, size * MIB + MIB // 2, moved)


def _table(output: str) -> list[_Row]:
    line = output[output.index(_TABLE) :].partition("\n")[0]
    try:
        data = msgspec.json.decode(line, type=_Line).data
    except msgspec.MsgspecError as error:
        raise FitParamsError(f"llama-fit-params answered in another form: {error}") from error
    if data.unit != "MiB":
        raise FitParamsError(f"llama-fit-params counts in {data.unit}, not in MiB")
    return data.rows


def _plain_lines(output: str) -> list[_Row]:
    rows = []
    for line in output.splitlines():
        if match := _PLAIN.fullmatch(line.strip()):
            kind = "host" if match[1] == "Host" else "device"
            rows.append(_Row(kind, match[1], *(int(each) for each in match.groups()[1:])))
    if not rows:
        raise FitParamsError("llama-fit-params printed no figures")
    return rows
