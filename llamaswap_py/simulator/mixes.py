"""Traces with many clients, sizes and failures, each from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from llamaswap_py.scheduler.types import ClientId, Policy, Pool, PresetId
from llamaswap_py.simulator.run_records import Case, Model, SimulatedCrash, TraceRequest
from llamaswap_py.simulator.sequential_traces import GPU, A, B, C, closed, places, uniform_models
from llamaswap_py.units import GIB

GREEDY: Final = ClientId("greedy")
"""The client that asks for all models."""


def poisson_mix(rate: float = 0.4, seconds: float = 1200.0, *, seed: int = 1) -> Case:
    """Independent requests for four models of unequal popularity; two fit."""
    random = Random(seed)
    asks = list(_poisson(random, rate, seconds, "abcd", (8, 4, 2, 1), service=1.5))
    return Case(
        name="poisson mix",
        models=uniform_models("abcd", 4.0),
        pools=places(2),
        asks=tuple(asks),
        note="8:4:2:1 over four models, two fit",
    )


def bursts(number: int = 12, size: int = 12, *, seed: int = 1) -> Case:
    """Every 30 s a burst of requests, alternating A B A B, from one client; one fits."""
    random = Random(seed)
    asks = [
        TraceRequest(
            client=ClientId(f"c{random.randrange(3)}"),
            model=PresetId("ab"[which % 2]),
            service=round(random.uniform(0.5, 1.5), 6),
            at=30.0 * burst + 0.01 * which,
        )
        for burst in range(number)
        for which in range(size)
    ]
    return Case(
        name="bursts",
        models=uniform_models("ab", 2.0),
        pools=places(1),
        asks=tuple(asks),
        note="12 at once, A B A B, every 30 s",
    )


def sessions(seconds: float = 7200.0, *, models: int = 50, seed: int = 1) -> Case:
    """Sessions of a few requests over 50 models of 1 to 40 GiB with a heavy tail; 80 GiB fit."""
    random = Random(seed)
    sizes = [min(2**i, 40) for i in (random.uniform(0, 5.4) for _ in range(models))]
    zoo = tuple(
        Model(
            name=PresetId(f"m{number:02d}"),
            footprint={GPU: round(size * GIB)},
            load=round(0.5 + size / 2, 3),
            slots=4,
        )
        for number, size in enumerate(sizes)
    )
    weights = [1 / (rank + 1) for rank in range(models)]
    asks: list[TraceRequest] = []
    at = 0.0
    session = 0
    while (at := at + random.expovariate(1 / 25)) < seconds:
        session += 1
        name = random.choices(zoo, weights)[0].name
        when = at
        for _ in range(1 + int(random.expovariate(1 / 6))):
            asks.append(
                TraceRequest(
                    client=ClientId(f"s{session}"),
                    model=name,
                    service=round(min(random.lognormvariate(0.5, 0.8), 20.0), 6),
                    at=round(when, 6),
                )
            )
            when += 2 + random.expovariate(1 / 12)
    asks.sort(key=lambda ask: ask.at or 0.0)
    return Case(
        name="50 presets",
        models=zoo,
        pools={GPU: Pool(81 * GIB, GIB)},
        asks=tuple(asks),
        note=f"sessions, 1 to 40 GiB, {len(asks)} requests in {seconds / 3600:g} h",
    )


def big_and_small(seconds: float = 900.0, *, seed: int = 1) -> Case:
    """Five small models that are always in use, and one that needs nearly all memory."""
    random = Random(seed)
    small = uniform_models("abcde", 1.0)
    big = Model(name=PresetId("big"), footprint={GPU: 4}, load=8.0, slots=4)
    asks = [
        ask
        for model in "abcde"
        for ask in closed(f"of-{model}", model * round(seconds / 3), 1.5, random, think=0.5)
    ]
    asks += [
        TraceRequest(client=ClientId("of-big"), model=big.name, service=3.0, at=at)
        for at in range(30, round(seconds), 90)
    ]
    return Case(
        name="big and small",
        models=(*small, big),
        pools=places(4),
        asks=tuple(asks),
        note="five small in use, room for four; the big one takes all",
    )


def crashes(each: int = 40, *, seed: int = 1) -> Case:
    """Three clients on A and B with room for both; A dies while loading, then while serving."""
    random = Random(seed)
    dying = Model(
        name=A,
        footprint={GPU: 1},
        load=2.0,
        slots=4,
        faults=(SimulatedCrash(1, 1.0), SimulatedCrash(2, 12.0)),
    )
    asks = [
        ask
        for number, model in enumerate("abab")
        for ask in closed(f"c{number}", model * each, 1.0, random, think=0.2)
    ]
    return Case(
        name="crashes",
        models=(dying, *uniform_models("b", 2.0)),
        pools=places(2),
        asks=tuple(asks),
        note="A dies while loading, later while serving",
    )


def leavers(each: int = 30, *, seed: int = 1) -> Case:
    """Two hot models, and half the requests for a third are given up before its load is done."""
    random = Random(seed)
    asks = [ask for model in "ab" for ask in closed(model, model * each, 1.0, random)]
    asks += [
        TraceRequest(
            client=ClientId("hasty"),
            model=C,
            service=1.0,
            at=4.0 + 6.0 * number,
            gives_up_after=random.choice([0.5, 1.0, 30.0]),
        )
        for number in range(8)
    ]
    return Case(
        name="leavers",
        models=uniform_models("abc", 2.0),
        pools=places(2),
        asks=tuple(asks),
        note="a third model whose clients give up",
    )


def one_against_three(bursts: int = 12, size: int = 60, *, seed: int = 1) -> Case:
    """One client asks for five models at once, again and again; three others want one of them.

    Two models fit, and 16 requests may wait for one.
    """
    random = Random(seed)
    asks = [
        ask
        for client in ("ann", "bob", "eve")
        for ask in closed(client, "a" * 10 * bursts, 1.0, random, think=1.0)
    ]
    asks += [
        TraceRequest(
            client=GREEDY,
            model=PresetId("abcde"[which % 5 if which < size // 2 else 0]),
            service=round(random.uniform(0.5, 1.5), 6),
            at=10.0 * burst,
        )
        for burst in range(1, bursts + 1)
        for which in range(size)
    ]
    return Case(
        name="one against three",
        models=uniform_models("abcde", 2.0, slots=2),
        pools=places(2),
        asks=tuple(asks),
        policy=Policy(queue_limit=16),
        note="one client fills the queues of five models, three others use A; two fit",
    )


def nested(turns: int = 6, *, named: bool = True, seed: int = 1) -> Case:
    """A client asks for B while its stream on A is open; one fits, and A drains for 20 s.

    `named`: its requests for B name the request under which they are made.
    """
    random = Random(seed)
    models = tuple(
        Model(name=name, footprint={GPU: 1}, load=2.0, slots=4, drain_timeout=20.0)
        for name in (A, B)
    )
    asks: list[TraceRequest] = []
    for turn in range(turns):
        outer, client = f"outer{turn}", ClientId("agent")
        service = round(random.uniform(1.0, 3.0), 6)
        asks.append(TraceRequest(client=client, model=A, service=service, think=1.0, name=outer))
        asks.append(
            TraceRequest(
                client=client,
                model=B,
                service=1.0,
                think=0.5,
                parent=outer,
                names_parent=named,
                gives_up_after=300.0,
            )
        )
    return Case(
        name="nested use" if named else "nested, unsaid",
        models=models,
        pools=places(1),
        asks=tuple(asks),
        note="B asked for under a stream of A, one fits"
        + ("" if named else "; the requests do not say so"),
    )


def day(seconds: float = 86400.0, *, seed: int = 1) -> Case:
    """A day of a small team: sessions over twelve models with a quiet night; three fit."""
    random = Random(seed)
    names = "abcdefghijkl"
    asks: list[TraceRequest] = []
    at = 0.0
    session = 0
    while True:
        hour = at / 3600 % 24
        pause = 60.0 if 8 <= hour < 20 else 600.0
        if (at := at + random.expovariate(1 / pause)) >= seconds:
            break
        session += 1
        name = random.choices(names, [1 / (rank + 1) for rank in range(12)])[0]
        when = at
        for _ in range(1 + int(random.expovariate(1 / 12))):
            asks.append(
                TraceRequest(
                    client=ClientId(f"p{session % 9}"),
                    model=PresetId(name),
                    service=round(random.uniform(0.5, 6.0), 6),
                    at=round(when, 6),
                )
            )
            when += random.expovariate(1 / 15)
    asks.sort(key=lambda ask: ask.at or 0.0)
    return Case(
        name="a day",
        models=uniform_models(names, 6.0),
        pools=places(3),
        asks=tuple(asks),
        note=f"{len(asks)} requests, twelve models, three fit",
    )


def _poisson(
    random: Random,
    rate: float,
    seconds: float,
    models: str,
    weights: Sequence[float],
    *,
    service: float,
) -> Iterator[TraceRequest]:
    at = 0.0
    while (at := at + random.expovariate(rate)) < seconds:
        yield TraceRequest(
            client=ClientId(f"c{random.randrange(8)}"),
            model=PresetId(random.choices(models, weights)[0]),
            service=round(random.uniform(0.5, 1.5) * service, 6),
            at=round(at, 6),
        )
