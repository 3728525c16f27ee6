"""The demonstration: two models share the memory for one, and each gets a request.

`lswap demo` runs it, and `make demo` in a checkout. Everything is real: llama-server, the models
(tiny), `lswap up`, and requests of OpenAI's API.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.client import calls
from llamaswap_py.client.lean_httpx import httpx
from llamaswap_py.client.remote import Remote
from llamaswap_py.config.load import read_config
from llamaswap_py.demo.served import DemoError, ServedLswap, free_endpoint, loaded, relative
from llamaswap_py.errors import EngineError, LswapError
from llamaswap_py.llamacpp.binaries import VARIABLE, Engine, locate_engine
from llamaswap_py.llamacpp.install import build_engine
from llamaswap_py.llamacpp.paths import demo_folder
from llamaswap_py.llamacpp.releases import install_release
from llamaswap_py.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.config.sections import Config, Preset

_QUESTION: Final = "Who are you?"
_PATH: Final = "/v1/chat/completions"
_ANSWER_SECONDS: Final = 60.0
_HOW_TO_GET_ONE: Final = (
    "`lswap demo --build` downloads or builds llama-server first; `lswap engine install` and "
    "`lswap engine build` have more choices"
)
_TINY: Final = 32 * 1024**2
"""A larger file is not a tiny model, and is not overwritten."""


def run(path: Path | None = None, *, keep: bool = False, build: bool = False) -> int:
    """Run the demonstration; return the exit code.

    `keep`: serve on afterwards. `build`: get a llama-server if there is none, from a release of
    llama.cpp if it can be had, else by building it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # even if a shell has started it with Ctrl-C ignored
    try:
        _demonstrate(path or demo_file(), keep=keep, build=build)
    except LswapError as error:
        _say_failure(error.message, error.remedy)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _demonstrate(path: Path, *, keep: bool, build: bool) -> None:
    config = read_config(path)
    print(_bold("lswap demo") + ": two tiny models behind one port, and memory for one of them\n")
    _provide_engine(build=build)
    _write_models(config)
    wanted = config.listen[0]
    endpoint = free_endpoint(wanted)
    if endpoint != wanted:
        print(_dim(f"  {wanted} is in use: using {endpoint}"))
    log = Path(next(iter(config.models.values())).model).parent / "lswap.log"
    served = ServedLswap(path, endpoint, log)
    try:
        _serve_and_talk(config, served, keep=keep)
    except LswapError as error:
        raise DemoError(error.message, remedy=_with_log(error, served)) from error


def _serve_and_talk(config: Config, served: ServedLswap, *, keep: bool) -> None:
    url = served.endpoint.url
    began = time.perf_counter()
    # Proxies of the environment are for other hosts.
    with served, httpx.Client(base_url=url, timeout=_ANSWER_SECONDS, trust_env=False) as client:
        _row("server", f"lswap up {relative(served.config)} on {url}", "listening", began)
        _talk(config, client, url)
        if keep:
            _serve_on(config, served)
        _stop(served)


# --- before the server ---------------------------------------------------------------------------


def demo_file() -> Path:
    """Return the demo's configuration: that of a checkout, else one in the cache.

    The models lie below the checkout, else beside the file.
    """
    here = Path(__file__).resolve()
    own = here.parents[2] / "configs" / "demo.yaml"
    if own.is_file():
        return own
    try:
        text = here.with_name("demo.yaml").read_text(encoding="utf-8")
        path = demo_folder() / "demo.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("../build/demo/", ""), encoding="utf-8")
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a folder of yours, or name a file with --config"
        raise DemoError(f"{error.filename}: {error.strerror}", remedy=remedy) from error
    return path


def _provide_engine(*, build: bool) -> None:
    began = time.perf_counter()
    how = "found"
    try:
        engine = locate_engine("auto")
    except EngineError as error:
        if os.environ.get(VARIABLE):  # the user has named one, if a wrong one
            raise
        if not build:
            raise DemoError(error.message, remedy=_HOW_TO_GET_ONE) from error
        engine, how = _get_engine()
    _row("engine", f"llama-server {engine.label} ({engine.source})", how, began)


def _get_engine() -> tuple[Engine, str]:
    print("  no llama-server on this machine: taking one from llama.cpp's releases", flush=True)
    try:
        return install_release(say=lambda line: print(f"    {line}", flush=True)), "installed"
    except EngineError as error:
        print(f"    {error.message}", flush=True)
    print("  building one instead (some minutes, once)", flush=True)
    build_engine([])
    print()
    return locate_engine("auto"), "built"


def _write_models(config: Config) -> None:
    began = time.perf_counter()
    from llamaswap_py.demo.tiny_gguf import write_tiny_model

    total = 0
    for preset in config.models.values():
        path = Path(preset.model)
        if path.exists() and path.stat().st_size > _TINY:
            raise DemoError(f"{path} is not a tiny model: the demo would overwrite it")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tiny_model(path, _sentence(preset), name=preset.id)
        total += path.stat().st_size
    names = " and ".join(Path(preset.model).name for preset in config.models.values())
    folder = relative(Path(next(iter(config.models.values())).model).parent.resolve())
    _row("models", f"{names} in {folder} ({format_size(total)})", "written", began)


def _sentence(preset: Preset) -> str:
    says = preset.metadata.get("says")
    if not isinstance(says, str):
        raise DemoError(
            f"{preset.id} says nothing: this is not the demo's configuration",
            remedy="use configs/demo.yaml, or give each model `metadata: {says: SENTENCE}`",
        )
    return says


# --- the conversation ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer; times in milliseconds."""

    text: str
    first: float
    whole: float
    queue: float
    load: float


def _talk(config: Config, client: httpx.Client, url: str) -> None:
    """Ask every model of the file. The first one streams, the others answer in one piece."""
    previous: str | None = None
    with Remote(url) as remote:
        for preset in config.models.values():
            stream = previous is None
            print(f"\n  {'you':<8} {_QUESTION:<47} {_dim('to ' + preset.id)}")
            answer = _ask(client, preset.id, stream=stream)
            if answer.text.strip() != _sentence(preset).strip():
                raise DemoError(f"{preset.id} answered {answer.text!r}, not its own sentence")
            _say_times(answer, preset.id, previous, stream=stream)
            state = remote.ask(calls.state())
            host = state.devices[-1]
            memory = f"{format_size(host.used)} of {format_size(host.total)}"
            print(f"  {'':<8} " + _dim(f"in memory now: {loaded(state)} ({memory})"))
            previous = preset.id
        _say_decisions(remote)


def _ask(client: httpx.Client, model: str, *, stream: bool) -> _Answer:
    print(f"  {model:<8} ", end="", flush=True)
    try:
        return _streamed(client, model) if stream else _in_one_piece(client, model)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        print()
        raise DemoError(f"the request to {model} failed: {error}") from error


def _streamed(client: httpx.Client, model: str) -> _Answer:
    began = time.perf_counter()
    text, first = "", 0.0
    with client.stream("POST", _PATH, json=_body(model, stream=True)) as answer:
        if not answer.is_success:
            answer.read()
            raise ValueError(answer.text)
        for piece in _pieces(answer):
            first = first or _since(began)
            text += piece
            print(_bold(piece), end="", flush=True)
        print()
        return _answer(text, first, _since(began), answer.headers)


def _pieces(answer: httpx.Response) -> Iterator[str]:
    """Yield the words of a streamed answer as they come."""
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            data = json.loads(line.removeprefix("data: "))
            if "error" in data:
                raise ValueError(line)
            choices = data["choices"]
            if choices and (piece := choices[0]["delta"].get("content")):
                yield piece


def _in_one_piece(client: httpx.Client, model: str) -> _Answer:
    began = time.perf_counter()
    answer = client.post(_PATH, json=_body(model, stream=False))
    if not answer.is_success:
        raise ValueError(answer.text)
    text = answer.json()["choices"][0]["message"]["content"] or ""
    whole = _since(began)
    print(_bold(text.strip()))
    return _answer(text, whole, whole, answer.headers)


def _body(model: str, *, stream: bool) -> dict[str, Any]:
    question = {"role": "user", "content": _QUESTION}
    return {"model": model, "messages": [question], "stream": stream}


def _answer(text: str, first: float, whole: float, headers: Any) -> _Answer:
    queue, load = (float(headers.get(f"x-lswap-{name}-ms", 0)) for name in ("queue", "load"))
    return _Answer(text, first, whole, queue, load)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


# --- what is printed -----------------------------------------------------------------------------


def _say_times(answer: _Answer, model: str, previous: str | None, *, stream: bool) -> None:
    parts = [f"loaded in {answer.load:.0f} ms"]
    if previous is not None:
        swap = answer.queue + answer.load
        parts = [f"swap {swap:.0f} ms ({previous} out {answer.queue:.0f}, {model} in"]
        parts[0] += f" {answer.load:.0f})"
    if stream:
        parts.append(f"first word after {answer.first:.0f} ms")
    parts.append(f"whole answer after {answer.whole:.0f} ms")
    print(f"  {'':<8} " + _dim(" · ".join(parts)))


def _say_decisions(remote: Remote) -> None:
    print("\n  what lswap decided")
    decisions = remote.ask(calls.decisions(limit=100)).decisions
    for one in decisions:
        at = f"{(one.at - decisions[0].at) * 1000:.0f} ms"
        print(f"  {at:>8} {one.preset:<6} {one.kind:<6} " + _dim(_fitting(one.reason, 26)))
    state = remote.ask(calls.state())
    print(f"\n  {'total':<8} loads {state.loads_total}, evictions {state.evictions_total}")


def _serve_on(config: Config, served: ServedLswap) -> None:
    model = next(iter(config.models))
    url = served.endpoint.url
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{_QUESTION}"}}]}}'
    print(f"\n  {'serving':<8} {_bold(url)} until Ctrl-C. Try:")
    print(f"    curl {url}/v1/chat/completions -d '{body}'")
    print(f"    {relative(Path(sys.executable).parent / 'lswap')} ps --url {url}", flush=True)
    try:
        served.wait()
    except KeyboardInterrupt:
        print()


def _stop(served: ServedLswap) -> None:
    seconds = served.stop()
    done = f"in {format_duration(seconds)}, exit code 0, no llama-server left"
    print(f"  {'stopped':<8} {done}", flush=True)


def _row(what: str, text: str, done: str, began: float) -> None:
    took = format_duration(time.perf_counter() - began)
    print(f"  {what:<8} {text:<62} {_dim(f'{done:<9} {took:>7}')}", flush=True)


def _with_log(error: LswapError, served: ServedLswap) -> str:
    lines = [error.remedy] if error.remedy else []
    lines.append(f"the last lines of {relative(served.log)}:")
    lines += [f"  | {line}" for line in served.last_lines()]
    return "\n".join(lines)


def _say_failure(message: str, remedy: str) -> None:
    sys.stdout.flush()
    print(f"\ndemo failed: {message}", file=sys.stderr)
    for line in remedy.splitlines():
        print(f"  {line}", file=sys.stderr)


def _fitting(text: str, column: int) -> str:
    """Return as much of `text` as fits on a line from `column` on; all of it without a terminal."""
    room = shutil.get_terminal_size().columns - column
    fits = not sys.stdout.isatty() or len(text) <= room
    return text if fits else text[: max(room - 2, 0)] + " …"


def _bold(text: str) -> str:
    return _styled("1", text)


def _dim(text: str) -> str:
    return _styled("2", text)


def _styled(code: str, text: str) -> str:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[{code}m{text}\x1b[0m" if coloured else text
