"""What a swap costs a long conversation: with and without `keep_kv`. `python -m bench.keep_kv`.

One lswap, room for one model. A conversation is read by model A, B takes the memory, and A is asked
to go on with the conversation: how long until its first token, and how much of it was read again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.estimate_models import ModelShape, write_model
from bench.measure import Column, Rounds, in_turns, render
from bench.workplace import BenchError, Workplace, free_port, running
from llamaswap_py.errors import LswapError
from llamaswap_py.llamacpp.binaries import Engine, locate_engine

TOKENS = 1500
"""Of the conversation. Its KV cache takes 8 KiB a token, the model's weights 70 MB."""
SHAPE = ModelShape(
    layers=8, width=512, heads=8, kv_heads=4, head_size=64, feed_forward=2048, vocabulary=8000
)
_SMALL = ModelShape(
    layers=1, width=64, heads=2, kv_heads=2, head_size=32, feed_forward=64, vocabulary=8000
)
_WITH, _WITHOUT, _OTHER = "keep_kv", "without", "other"
_PATIENCE = 300.0
_MORE = 8  # tokens that the conversation grows by

_COLUMNS = [
    Column("out", "A's last answer → first token of B, ms", 0),
    Column("back", "B's last answer → first token of A, ms", 0),
    Column("prompt", "of it reading the prompt, ms", 1),
    Column("read", "tokens read again", 0, ratio=False),
    Column("kept", "MiB kept", 1, ratio=False),
    Column("saving", "saving, ms", 0, ratio=False),
    Column("restoring", "restoring, ms", 0, ratio=False),
]


def measure_keep_kv(
    place: Workplace,
    engine: Engine,
    rounds: int,
    note: Callable[[str], None],
    *,
    on: str = "",
    tokens: int = TOKENS,
    shape: ModelShape = SHAPE,
    host: str = "512MiB",
) -> str:
    """Measure swaps of a long conversation, both ways in turns; return the table.

    `on` is the device of both models, the host if it is "". `host` is what they are given of that.
    """
    scores, chance = Rounds(), random.Random(0)
    large, small = place.folder / "large.gguf", place.folder / "small.gguf"
    write_model(large, shape)
    write_model(small, _SMALL)
    with ExitStack() as stack:
        port = free_port()
        said = _config(port, engine, large, small, on=on, host=host, context=2 * tokens + 1096)
        client = _start(place, stack, port, said)
        for name in (_WITH, _WITHOUT, _OTHER):  # what is read for the first time counts for nobody
            _ask(client, name, [1, 300])
        for number in range(rounds):
            for name in in_turns([_WITH, _WITHOUT], number):
                note(f"{name}, round {number + 1} of {rounds}")
                _measure_one(client, scores, name, chance, tokens)
    title = (
        f"A conversation of {tokens:,} tokens over a swap: medians of {rounds} interleaved rounds "
        f"(ratio to {_WITHOUT}); a model of {_parameters(shape)} million parameters"
    )
    return render(title, scores, _COLUMNS, [_WITHOUT, _WITH], _WITHOUT)


def _parameters(shape: ModelShape) -> int:
    """Return the parameters of a shape's layers in millions."""
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_size
    each = shape.width * (attention + 3 * shape.feed_forward)
    return round(shape.layers * each / 1e6)


def _measure_one(
    client: httpx.Client, scores: Rounds, name: str, chance: random.Random, tokens: int
) -> None:
    words = [1, *(chance.randrange(300, 7999) for _ in range(tokens - 1))]
    _ask(client, name, words)
    before = _kept(client)  # what the other way round has left
    out, _ = _ask(client, _OTHER, [1, 300])
    kept = _kept(client) - before
    more = [chance.randrange(300, 7999) for _ in range(_MORE)]
    back, timings = _ask(client, name, words + more)
    scores.add("out", name, out * 1000)
    scores.add("back", name, back * 1000)
    scores.add("prompt", name, timings["prompt_ms"])
    scores.add("read", name, timings["prompt_n"])
    scores.add("kept", name, kept / 2**20)
    if name == _WITH:
        scores.add("saving", name, _took(client, "kept"))
        scores.add("restoring", name, _took(client, "restored"))


def _kept(client: httpx.Client) -> int:
    return int(client.get("/lswap/v1/state").json()["kept_kv"])


def _took(client: httpx.Client, kind: str) -> float:
    """Return the milliseconds that the newest decision of a kind names."""
    decisions = client.get("/lswap/v1/decisions", params={"model": _WITH}).json()["decisions"]
    said = [one["reason"] for one in decisions if one["kind"] == kind and " ms)" in one["reason"]]
    if not said:
        raise BenchError(f"nothing was {kind}")
    return float(said[-1].rpartition(" ms)")[0].rpartition(" ")[2])


def _ask(client: httpx.Client, model: str, prompt: list[int]) -> tuple[float, dict[str, Any]]:
    """Return the seconds until the only token of an answer, and llama-server's timings."""
    began = time.perf_counter()
    asked = {"model": model, "prompt": prompt, "n_predict": 1, "cache_prompt": True}
    answer = client.post("/completion", json=asked)
    if answer.status_code != 200:
        raise BenchError(f"{model} answered {answer.status_code}: {answer.text[-500:]}")
    return time.perf_counter() - began, answer.json()["timings"]


def _start(place: Workplace, stack: ExitStack, port: int, said: Mapping[str, Any]) -> httpx.Client:
    config = place.folder / "keep_kv.yaml"
    config.write_text(json.dumps(said))
    argv = [sys.executable, "-m", "llamaswap_py", "up", str(config)]
    env = {"XDG_CACHE_HOME": str(place.folder / "cache")}
    stack.enter_context(running(argv, port=port, log=place.folder / "keep_kv.log", env=env))
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE)
    return stack.enter_context(client)


def _config(
    port: int, engine: Engine, large: Path, small: Path, *, on: str, host: str, context: int
) -> Mapping[str, Any]:
    args = {"ctx-size": context, "parallel": 1, **({"n-gpu-layers": 99} if on else {})}
    preset = {"model": str(large), "memory": {"host": host}, "args": args}
    devices = {"host": "8GiB"}
    if on:  # one model at a time, so any size will do
        preset |= {"device": on, "memory": {on: "1GiB", "host": host}}
        devices[on] = "2GiB"
    return {
        "listen": f"127.0.0.1:{port}",
        "engine": str(engine.path),
        "memory": {"margin": 0, "cache_ram": 0, "devices": devices},
        "policy": {"max_loaded": 1},
        "models": {
            _WITHOUT: preset,
            _WITH: {**preset, "keep_kv": True},
            _OTHER: {**preset, "model": str(small)},
        },
    }


def main() -> int:
    """Measure and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.keep_kv", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="at least 1 (5)")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lswap-bench-"))
    try:
        place = Workplace(folder, None)
        engine = locate_engine("auto")
        print(measure_keep_kv(place, engine, max(asked.rounds, 1), _note))
    except LswapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
