"""Cases nobody would think of: random models, memory, clients and limits, each from a seed."""

from __future__ import annotations

from random import Random

from llamaswap_py.scheduler.types import ClientId, Policy, Pool, PoolId, PresetId
from llamaswap_py.simulator.run_records import Case, Model, SimulatedCrash, TraceRequest


def random_case(seed: int, *, faults: bool = False) -> Case:
    random = Random(seed)
    pools = {
        PoolId(f"p{at}"): Pool(random.choice([10, 20, 100]), random.choice([0, 0, 2]))
        for at in range(random.choice([1, 1, 1, 2, 3]))
    }
    slowness = random.choice([1, 1, 10, 60])
    models = tuple(
        _model(random, at, pools, slowness, faults=faults)
        for at in range(random.choice([2, 3, 5, 12]))
    )
    clients = random.choice([1, 2, 4, 8])
    asks = [ask for client in range(clients) for ask in _closed(random, f"c{client}", models)]
    asks += [
        TraceRequest(
            client=ClientId(f"b{random.randrange(4)}"),
            model=random.choice(models).name,
            service=random.uniform(0.1, 4.0),
            at=random.uniform(0.0, 120.0),
        )
        for _ in range(random.choice([0, 10, 60]))
    ]
    return Case(
        name=f"random {seed}",
        models=models,
        pools=pools,
        asks=tuple(asks),
        stop=random.choice([0.01, 0.5]),
        policy=Policy(max_wait=random.choice([5.0, 20.0, 60.0]), queue_timeout=1e6),
    )


def _model(
    random: Random, at: int, pools: dict[PoolId, Pool], slowness: int, *, faults: bool
) -> Model:
    share = random.choice([1, 4])
    footprint = {
        name: max(random.randint(1, pool.total - pool.margin) // share, 1)
        for name, pool in pools.items()
        if random.random() < 0.7
    }
    load = random.choice([0.05, 0.5, 2.0, 5.0]) * slowness * random.uniform(0.5, 1.5)
    died = [SimulatedCrash(random.randint(1, 3), random.uniform(0.0, 2 * load))]
    return Model(
        name=PresetId(f"m{at}"),
        footprint=footprint or {PoolId("p0"): 1},
        load=load,
        slots=random.choice([1, 1, 2, 4]),
        ttl=random.choice([None, None, 5.0]),
        drain_timeout=random.choice([5.0, 120.0]),
        faults=tuple(died) if faults and random.random() < 0.3 else (),
    )


def _closed(random: Random, client: str, models: tuple[Model, ...]) -> list[TraceRequest]:
    """One client: always one model, some at random, a loop, or one without a pause."""
    kind = random.choice(["one", "random", "loop", "hot"])
    mine = random.choices(models, k=random.choice([1, 2, 3]))
    asks = []
    for at in range(random.choice([10, 40])):
        model = {"random": random.choice(mine), "loop": mine[at % len(mine)]}.get(kind, mine[0])
        asks.append(
            TraceRequest(
                client=ClientId(client),
                model=model.name,
                service=random.choice([0.1, 1.0, 3.0]) * random.uniform(0.5, 1.5),
                think=0.0 if kind == "hot" else random.choice([0.0, 0.05, 1.0, 5.0]),
                gives_up_after=random.choice([None] * 6 + [1.0, 20.0]),
            )
        )
    return asks
