"""What llama.cpp's own fit makes of a model alone: `llama-fit-params --fit on`."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.fit_machines import Placement
from llamaswap_py.llamacpp.fit_params import FitParamsError, has_table, read_figures
from llamaswap_py.units import HOST, format_size

_LIMIT = 300.0
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Bare:
    """Its answer: the words, the bytes per device, and those of weights; or why it does not run.

    `left` are the bytes of the host that it leaves free.
    """

    words: tuple[str, ...] = ()
    footprint: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    why: str = ""
    left: int = 0

    @property
    def runs(self) -> bool:
        return not self.why

    @property
    def context(self) -> int:
        return int(self.words[self.words.index("-c") + 1]) if "-c" in self.words else 0

    @property
    def weights_on_devices(self) -> int:
        return sum(size for device, size in self.weights.items() if device != HOST)

    def text(self) -> str:
        """Return it for a cell of the table."""
        if not self.words:
            return f"no: {self.why}"
        said = f"{self.context:,} context"
        if self.weights_on_devices:
            said += f", {format_size(self.weights_on_devices)} of weights on devices"
        return f"no: {self.why} ({said})" if self.why else said


def fit_alone(fit_params: Path, model: Path, placement: Placement, beside: int) -> Bare:
    """Fit a model to a machine as llama-server would; `beside` are bytes of a projector.

    llama-server raises its target by the projector's memory, which llama-fit-params does not know.
    Without a device it compares with all of the host's memory; with one it ignores the host. So
    what it chose counts as running only if the host of the machine can hold its part, too.
    """
    common = ["--model", str(model), *placement.args]
    target = _raised(placement.fit_target, beside)
    try:
        said = _run(fit_params, [*common, "--fit", "on", "--fit-target", target])
        words = _fitted_words(said)
        return _judged(fit_params, common, words, placement)
    except FitParamsError as error:
        return Bare(why=error.message)


def _fitted_words(said: str) -> tuple[str, ...]:
    lines = [line for line in said.splitlines() if line.startswith("-c ")]
    if not lines:
        raise FitParamsError("llama-fit-params fitted nothing")
    return tuple(shlex.split(lines[-1]))


def _judged(
    fit_params: Path, common: Sequence[str], words: tuple[str, ...], placement: Placement
) -> Bare:
    shown = ["--fit", "off", "--fit-print", "on", "--log-jsonl", "--log-verbosity", "1"]
    said = ""
    for _ in range(_ATTEMPTS):
        said = _run(fit_params, [*common, *words, *shown])
        if has_table(said):
            break
    footprint: dict[str, int] = {}
    weights: dict[str, int] = {}
    for device, purpose, size, _ in read_figures(said):
        name = HOST if device is None else placement.engine_names.get(device, device)
        footprint[name] = footprint.get(name, 0) + size
        if purpose == "model":
            weights[name] = weights.get(name, 0) + size
    short = [
        f"{format_size(size)} of {format_size(placement.sizes[name])} on {name}"
        for name, size in footprint.items()
        if size > placement.sizes.get(name, 0)
    ]
    left = placement.sizes[HOST] - footprint.get(HOST, 0)
    return Bare(words, footprint, weights, f"it needs {', '.join(short)}" if short else "", left)


def _raised(target: str, beside: int) -> str:
    first, comma, rest = target.partition(",")
    return f"{int(first) + (beside >> 20)}{comma}{rest}"


def _run(fit_params: Path, args: Sequence[str]) -> str:
    done = subprocess.run(
        [str(fit_params), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_LIMIT,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise FitParamsError(f"status {done.returncode}: {(lines or ['nothing'])[-1][:160]}")
    return done.stdout + done.stderr
