"""What llama.cpp's own router is tested for, and what it does not promise, with real children."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import model_of

if TYPE_CHECKING:
    from llamaswap_py.snapshot import Snapshot
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
BURST = 20


async def test_a_burst_for_two_models_that_cannot_coexist(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}) as lswap:
        names = ["alpha", "beta"] * BURST
        answers = await asyncio.gather(*(lswap.chat(name) for name in names))
        assert answers == [lab.sentence(name) for name in names]
        state = await lswap.state()
        assert state.requests_total == len(names)
        assert state.requests_open == 0
        assert (state.loads_total, state.evictions_total) == (2, 1)


async def test_two_models_with_lasting_demand_do_not_thrash(lab: Lab) -> None:
    """Eight clients ask for two models in turn; a swap per request would be 40 loads."""

    async def client(first: int) -> list[str]:
        names = [("alpha", "beta")[(first + turn) % 2] for turn in range(10)]
        return [await lswap.chat(name) for name in names]

    async with lab.lswap({"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}) as lswap:
        answers = await asyncio.gather(*(client(number) for number in range(8)))
        for number, said in enumerate(answers):
            names = [("alpha", "beta")[(number + turn) % 2] for turn in range(10)]
            assert said == [lab.sentence(name) for name in names]
        state = await lswap.state()
        # In one stay of a model a client gets one answer: its next request is for the other. So
        # eleven loads are the least; no stay may serve less than four of the eight.
        assert 11 <= state.loads_total <= 20
        assert state.evictions_total == state.loads_total - 1


async def test_three_models_with_room_for_two(lab: Lab) -> None:
    names = ["alpha", "beta", "gamma"]
    models = {name: lab.preset(name, size="90MiB") for name in names}
    async with lab.lswap(models) as lswap:
        for name in ["alpha", "beta", "alpha"]:
            assert await lswap.chat(name) == lab.sentence(name)
        first = await lswap.state()
        assert (first.loads_total, first.evictions_total) == (2, 0)
        # One of the two gives way, and the other's process goes on.
        assert await lswap.chat("gamma") == lab.sentence("gamma")
        second = await lswap.state()
        assert (second.loads_total, second.evictions_total) == (3, 1)
        pids = {one.pid for one in first.instances} & {one.pid for one in second.instances}
        assert len(second.instances) == 2
        assert len(pids) == 1

        seen: list[Snapshot] = []

        async def ask(name: str) -> str:
            text = await lswap.chat(name)
            seen.append(await lswap.state())
            return text

        turns = names * 8
        assert await asyncio.gather(*map(ask, turns)) == [lab.sentence(name) for name in turns]
        for state in seen:
            assert sum(device.used for device in state.devices) <= 190 << 20
        # The burst needs one load that is new; what it pushes out comes back at most once each.
        assert (await lswap.state()).loads_total <= 3 + 2 * len(names)


async def test_strictly_alternating_requests(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}) as lswap:
        for turn in range(10):
            name = ("alpha", "beta")[turn % 2]
            assert await lswap.chat(name) == lab.sentence(name)
        state = await lswap.state()
        assert (state.loads_total, state.evictions_total) == (10, 9)
        assert len(lswap.child_pids()) == 1


async def test_many_requests_for_one_model(lab: Lab) -> None:
    """One load; never more leases than slots, the rest waits in lswap's own queue."""
    preset = lab.endless("alpha", layers=64, args={"parallel": 3})
    async with lab.lswap({"alpha": preset}) as lswap:
        done = asyncio.Event()

        async def watch() -> list[Snapshot]:
            seen = [await lswap.state()]
            while not done.is_set():
                seen.append(await lswap.state())
            return seen

        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(watch())
            asks = [tasks.create_task(lswap.post_chat("alpha", max_tokens=12)) for _ in range(30)]
            await asyncio.wait(asks)
            done.set()
        text = (lab.sentence("alpha") + " ") * 3
        for ask in asks:
            answer = ask.result()
            assert answer.status_code == 200
            assert text.startswith(answer.json()["choices"][0]["message"]["content"])
        views = [model_of(state, "alpha") for state in watcher.result()]
        assert max(view.leases for view in views) == 3
        assert max(view.waiting for view in views) > 3
        assert (await lswap.state()).loads_total == 1


async def test_two_models_load_at_the_same_time(lab: Lab) -> None:
    """Both are `loading` at one moment: each can finish only after that."""
    gate = lab.folder / "gate"
    env = {"FAKE_LOAD_GATE": str(gate)}
    models = {name: lab.fake(name, size="90MiB", env=env) for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap, asyncio.TaskGroup() as tasks:
        asks = [tasks.create_task(lswap.fake_answer(name)) for name in models]
        await lswap.until(
            lambda now: [one.state for one in now.instances] == ["loading", "loading"]
        )
        gate.touch()
        await asyncio.wait(asks)
        assert [ask.result() for ask in asks] == ["t0t1t2", "t0t1t2"]


async def test_real_loads_overlap(lab: Lab) -> None:
    models = {name: lab.heavy(name, mib=192, size="90MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap:
        answers = await asyncio.gather(*(lswap.chat(name) for name in models))
        assert answers == [lab.sentence(name) for name in models]
        state = await lswap.state()
        ready = [one.ready_at for one in state.instances if one.ready_at is not None]
        assert len(ready) == 2
        assert max(one.spawned_at for one in state.instances) < min(ready)
        assert state.evictions_total == 0


async def test_models_whose_memory_is_not_declared(lab: Lab) -> None:
    """It is worked out before the first load, and measured after it: both fit."""
    models = {name: lab.preset(name) for name in ("alpha", "beta")}
    for preset in models.values():
        del preset["memory"]
    async with lab.lswap(models) as lswap:
        names = ["alpha", "beta", "beta", "alpha"]
        answers = await asyncio.gather(*(lswap.chat(name) for name in names))
        assert answers == [lab.sentence(name) for name in names]
        state = await lswap.until(
            lambda now: {one.footprint_source for one in now.models} == {"measured"}
        )
        assert len(state.instances) == 2
        assert all(one.footprint and one.footprint["host"] > 0 for one in state.models)


async def test_models_whose_memory_cannot_be_known(lab: Lab) -> None:
    """Where no estimate can be had, presets load one at a time on their device."""
    models = {name: lab.fake(name) for name in ("alpha", "beta")}
    for preset in models.values():
        preset.pop("memory", None)
    async with lab.lswap(models) as lswap:
        answers = await asyncio.gather(*(lswap.fake_answer(name) for name in models))
        assert answers == ["t0t1t2", "t0t1t2"]
        state = await lswap.state()
        assert len(state.instances) == 1
        assert {one.footprint_source for one in state.models} == {"unknown"}


async def test_a_hot_model_does_not_starve_another(lab: Lab) -> None:
    """Three clients that always ask again keep alpha busy; beta's one request is served."""
    models = {name: lab.preset(name) for name in ("alpha", "beta")}
    over = asyncio.Event()
    answers = 0

    async with lab.lswap(models) as lswap, asyncio.TaskGroup() as tasks:

        async def ask_again_and_again() -> None:
            nonlocal answers
            while not over.is_set():
                assert await lswap.chat("alpha") == lab.sentence("alpha")
                answers += 1

        for _ in range(3):
            tasks.create_task(ask_again_and_again())
        await lswap.until(lambda now: now.requests_total > 20)
        assert await lswap.chat("beta") == lab.sentence("beta")
        before = answers
        await lswap.until(lambda now: answers > before + 20)  # and alpha came back
        over.set()
    assert answers > before
