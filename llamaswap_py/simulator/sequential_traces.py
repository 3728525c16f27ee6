"""Traces of clients that send one request after another, each from a seed; and building blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from random import Random
from typing import Final

from llamaswap_py.scheduler.types import ClientId, Pool, PoolId, PresetId
from llamaswap_py.simulator.run_records import Case, Model, TraceRequest

GPU: Final = PoolId("gpu")
A, B, C = PresetId("a"), PresetId("b"), PresetId("c")
_JITTER: Final = 0.2
"""Service times vary by this share, up and down, because real requests are not in step."""


def uniform_models(names: str, load: float, *, slots: int = 4) -> tuple[Model, ...]:
    """Return models that each take one place of memory."""
    return tuple(
        Model(name=PresetId(name), footprint={GPU: 1}, load=load, slots=slots) for name in names
    )


def places(number: int) -> dict[PoolId, Pool]:
    """Return memory for `count` of `uniform_models`."""
    return {GPU: Pool(number)}


def closed(
    client: str,
    models: Sequence[str],
    service: float,
    random: Random,
    *,
    think: float = 0.01,
) -> Iterator[TraceRequest]:
    """Yield one client's requests, each asked `think` seconds after the answer before."""
    for model in models:
        varied = service * random.uniform(1 - _JITTER, 1 + _JITTER)
        yield TraceRequest(
            client=ClientId(client), model=PresetId(model), service=round(varied, 6), think=think
        )


def random_clients(
    clients: int,
    each: int,
    *,
    load: float = 2.0,
    service: float = 1.0,
    think: float = 0.01,
    seed: int = 1,
    slots: int = 4,
) -> Case:
    """Clients that each pick A or B at random, one request after another; one fits."""
    random = Random(seed)
    asks = [
        ask
        for number in range(clients)
        for ask in closed(f"c{number}", random.choices("ab", k=each), service, random, think=think)
    ]
    return Case(
        name=f"{clients} random clients",
        models=uniform_models("ab", load, slots=slots),
        pools=places(1),
        asks=tuple(asks),
        note=f"{clients} clients pick A or B at random, one fits",
    )


def loop_of_three(rounds: int = 100, *, seed: int = 1) -> Case:
    """One client asks A B C A B C …; two fit."""
    random = Random(seed)
    models = list(islice(cycle("abc"), rounds * 3))
    return Case(
        name="loop A B C",
        models=uniform_models("abc", 2.0),
        pools=places(2),
        asks=tuple(closed("c", models, 1.0, random)),
        note="one client, room for two",
    )


def alternating(clients: int = 1, each: int = 40, *, seed: int = 1) -> Case:
    """Clients that strictly alternate A B A B; one fits."""
    random = Random(seed)
    asks = [
        ask
        for number in range(clients)
        for ask in closed(f"c{number}", ("ab" * each)[number : number + each], 1.0, random)
    ]
    return Case(
        name=f"{clients} alternating",
        models=uniform_models("ab", 2.0),
        pools=places(1),
        asks=tuple(asks),
        note="A B A B, one fits" if clients == 1 else "half of them start with B",
    )


def agent_loops(clients: int = 3, turns: int = 30, *, seed: int = 1) -> Case:
    """Agents that ask A A B A C …: mostly the planner A, in between the others; two fit."""
    random = Random(seed)
    pattern = "aabaac"
    asks = [
        ask
        for number in range(clients)
        for ask in closed(f"agent{number}", pattern * (turns // 2), 1.0, random, think=0.05)
    ]
    return Case(
        name="agent loops",
        models=uniform_models("abc", 3.0),
        pools=places(2),
        asks=tuple(asks),
        note="A A B A A C, three agents, two fit",
    )


def hot_and_rare(seconds: float = 600.0, *, seed: int = 1) -> Case:
    """Four clients keep A busy without a pause; B is asked for every 40 s; one fits."""
    random = Random(seed)
    asks = [
        ask
        for number in range(4)
        for ask in closed(f"hot{number}", "a" * round(seconds / 2), 2.0, random, think=0.0)
    ]
    asks += [
        TraceRequest(client=ClientId("rare"), model=B, service=1.0, at=at)
        for at in range(20, round(seconds), 40)
    ]
    return Case(
        name="hot and rare",
        models=uniform_models("ab", 2.0),
        pools=places(1),
        asks=tuple(asks),
        note="A never idle, B every 40 s, one fits",
    )


def two_hot(each: int = 100, *, load: float = 2.0, seed: int = 1) -> Case:
    """Three clients keep A busy and three keep B busy; one fits."""
    random = Random(seed)
    asks = [
        ask
        for model in "ab"
        for number in range(3)
        for ask in closed(f"{model}{number}", model * each, 1.0, random)
    ]
    return Case(
        name="two hot" if load < 60 else "long loads",
        models=uniform_models("ab", load),
        pools=places(1),
        asks=tuple(asks),
        note="A and B never idle, one fits" + (f", loads of {load:g} s" if load >= 60 else ""),
    )


def long_loads(each: int = 300, *, seed: int = 1) -> Case:
    """The same with loads that take longer than `max_wait` (60 s)."""
    return two_hot(each, load=90.0, seed=seed)
