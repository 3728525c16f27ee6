"""Tries one llama-server as lswap runs it: a start, a request, a stop, files that cannot load.

`lswap engine compare` tries two, and says what differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.children.ask import ask
from llamaswap_py.children.child import Child
from llamaswap_py.children.child_events import ChildExited, ChildReady, ChildSpec
from llamaswap_py.children.logs import ChildLog
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.command_line import SMALL, WRONG, own_words
from llamaswap_py.llamacpp.log_changes import rule_of
from llamaswap_py.llamacpp.options import table_of

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.children.child_events import ChildEvent
    from llamaswap_py.llamacpp.failures import Failure
    from llamaswap_py.llamacpp.probe import Engine

__all__ = ["Trial", "try_engine"]

PATIENCE: Final = 60.0
"""Seconds that a start may take; a tiny model takes 0.03 on an idle machine."""
ANSWER: Final = 10.0
_SENTENCE: Final = "this engine says hello"
_METHODS: Final = ("GET", "POST", "DELETE")
_MISSING: Final = 404
_LINES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the start, the request and the stop; texts for people.

    `log` has the lines of a start, a request and a stop. `routes` are those of the asked paths that
    did not answer 404, also silent ones. `failures` maps what was wrong to the kind of failure that
    lswap reads in the log.
    """

    ready: str
    progress: str
    answer: str
    stop: str
    log: tuple[str, ...]
    routes: frozenset[tuple[str, str]]
    failures: Mapping[str, str]


async def try_engine(engine: Engine, folder: Path, paths: Collection[str]) -> Trial:
    """Run an engine a few times in `folder`, which must have a short path (for its socket).

    Raises EngineError if it does not get ready.
    """
    model = folder / "model.gguf"
    write_tiny_model(model, _SENTENCE)
    said: list[str] = []

    async def request(endpoint: Endpoint) -> None:
        said.append(await _chat(endpoint))

    routes: set[tuple[str, str]] = set()

    async def probe(endpoint: Endpoint) -> None:
        routes.update(await _answered(endpoint, paths))

    first = await _run(_spec(engine, folder, model), request)
    if first.ready is None:
        why = first.exited.failure.summary if first.exited.failure else "it ended"
        raise EngineError(
            f"{engine.label} did not get ready: {why}",
            remedy=f"run it by hand: {engine.path} --model {model}",
        )
    await _run(_spec(engine, folder, model), probe)
    return Trial(
        ready=_how_ready(engine, first),
        progress="by its own state lines"
        if engine.features.child_mode
        else "by the bytes it reads",
        answer=said[0],
        stop=_how_stopped(engine, first.exited),
        log=first.log,
        routes=frozenset(routes),
        failures=await _failures(engine, folder, model),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    ready: ChildReady | None
    exited: ChildExited
    log: tuple[str, ...]


def _spec(engine: Engine, folder: Path, model: Path, *more: str) -> ChildSpec:
    own = own_words(
        table_of(engine.options),
        model=str(model),
        alias="trial",
        cache_ram=0,
        requests=1,
        sleep=None,
    )
    words = (*own, *SMALL, *more)
    socket = folder / "trial.sock"
    return ChildSpec(
        name="trial",
        preset="trial",
        epoch=1,
        binary=str(engine.path),
        args=words,
        env={},
        socket_path=str(socket) if engine.features.unix_socket else None,
        child_mode=engine.features.child_mode,
        files=(str(model),),
        log_path=None,
        stop_timeout=ANSWER,
        load_stall=PATIENCE,
    )


async def _run(spec: ChildSpec, use: Callable[[Endpoint], Awaitable[None]] | None = None) -> _Run:
    """Start a child, use it once it is ready, and stop it."""
    ready: asyncio.Future[ChildReady | None] = asyncio.get_running_loop().create_future()

    def on_event(event: ChildEvent) -> None:
        if isinstance(event, ChildReady | ChildExited) and not ready.done():
            ready.set_result(event if isinstance(event, ChildReady) else None)

    logs = ChildLog(capacity=_LINES)
    child = Child(spec, on_event, logs)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(child.run())
        try:
            async with asyncio.timeout(PATIENCE):
                found = await ready
        except TimeoutError:
            found = None
        try:
            if found is not None and use is not None:
                await use(found.endpoint)
        finally:
            child.stop()
    exited = running.result()
    return _Run(found, exited, tuple(str(line) for line in logs.tail(_LINES)))


async def _chat(endpoint: Endpoint) -> str:
    """Return whether the answer is the model's sentence, and if not, what it is."""
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}], "stream": False})
    path = "/v1/chat/completions"
    try:
        answer = await ask(endpoint, "POST", path, timeout=PATIENCE, body=body)
        said: Any = msgspec.json.decode(answer.body)
        text = said["choices"][0]["message"]["content"]
    except (OSError, msgspec.DecodeError, LookupError, TypeError) as error:
        return f"none that can be read ({type(error).__name__})"
    return "as it should" if text == _SENTENCE else f"another text: {text!r}"


async def _answered(endpoint: Endpoint, paths: Collection[str]) -> set[tuple[str, str]]:
    """Return the routes among these paths; a silent one counts as a route."""
    found = set()
    for path in sorted(paths):
        for method in _METHODS:
            body = b"{}" if method == "POST" else b""
            try:
                answer = await ask(endpoint, method, path, timeout=2, body=body)
            except ConnectionError:
                continue
            except TimeoutError:
                found.add((method, path))
                continue
            if answer.status != _MISSING:
                found.add((method, path))
    return found


def _how_ready(engine: Engine, run: _Run) -> str:
    if engine.features.child_mode and run.ready is not None and run.ready.info:
        return "by its state line"
    known = any(rule_of(line) == "listening" for line in run.log)
    return "by a line of its log" if known else "by asking /health"


def _how_stopped(engine: Engine, exited: ChildExited) -> str:
    way = "the exit command" if engine.features.child_mode else "SIGTERM"
    if exited.failure is not None:
        return f"{way}: {exited.failure.summary}"
    if exited.signal is not None:
        return f"{way}, and then signal {exited.signal}"
    return way


# Files and words that cannot work


async def _failures(engine: Engine, folder: Path, model: Path) -> dict[str, str]:
    """Return, for each thing that cannot work, the kind of failure that lswap sees."""
    cases = {what: _spec(engine, folder, model, *words) for what, words in WRONG.items()}
    cases["a file that is not there"] = _spec(engine, folder, folder / "nowhere.gguf")
    for what, content in _broken(model).items():
        path = folder / f"{what.replace(' ', '-')}.gguf"
        path.write_bytes(content)
        cases[what] = _spec(engine, folder, path)
    found = {}
    for what, spec in cases.items():
        run = await _run(spec)
        found[what] = "none: it got ready" if run.ready else _kind(run.exited.failure)
    return found


def _broken(model: Path) -> dict[str, bytes]:
    """Return files that no llama-server can load."""
    whole = model.read_bytes()
    return {
        "a file that is cut short": whole[:100_000],
        "a file that is not a model": b"\x89PNG\r\n\x1a\n" + bytes(10_000),
        "an unknown architecture": whole.replace(
            b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma", 1
        ),
    }


def _kind(failure: Failure | None) -> str:
    return "none: it ended" if failure is None else failure.kind.value
