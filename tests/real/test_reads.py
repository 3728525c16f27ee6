"""Requests that only read from a model: whatever its state, they load, wake and evict nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.api import inference, routes
from tests.real.answers import error_of, instance_of, model_of

if TYPE_CHECKING:
    import httpx

    from llamaswap_py.snapshot import Snapshot
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

ROUTES = [
    path
    for path, methods in routes.ROUTES.items()
    if (route := methods.get("GET")) is not None and route.handle is inference.relay
]
BELOW = ("/props", "/slots", "/metrics", "/lora-adapters", "/health", "/v1/models", "/%73lots", "/")
WAKING = {"/slots", "/lora-adapters", "/%73lots", "/"}
"""What llama-server wakes up for, or what nobody knows of: refused while it sleeps."""


def test_every_route_that_reads_is_here() -> None:
    assert ROUTES == ["/props", "/slots", "/metrics", "/lora-adapters"]


async def read_all(lswap: Lswap, name: str) -> dict[str, httpx.Response]:
    """Read every route of a model in every way."""
    found: dict[str, httpx.Response] = {}
    for path in ROUTES:
        params = {"model": name}
        cross_site = {"sec-fetch-site": "cross-site"}
        params_cross = {**params, "autoload": "true"}
        for answer in (
            await lswap.client.get(path, params=params),
            await lswap.client.head(path, params=params),
            await lswap.client.get(path, params={**params, "autoload": "false"}),
            await lswap.client.get(path, params=params_cross, headers=cross_site),
        ):
            before = found.setdefault(path, answer)
            assert answer.status_code == before.status_code, (path, answer.text, before.text)
    for path in BELOW:
        found[f"/upstream{path}"] = await lswap.client.get(f"/upstream/{name}{path}")
    return found


def used(state: Snapshot, name: str) -> tuple[Any, ...]:
    """Return all that a use of a model would change."""
    lives = [
        (one.epoch, one.state, one.leases, one.last_used_at, one.evict_at)
        for one in state.instances
        if one.preset == name
    ]
    model = model_of(state, name)
    rounded = [
        tuple(round(each, 2) if isinstance(each, float) else each for each in one) for one in lives
    ]
    return model.state, model.loads, model.waiting, state.evictions_total, rounded


async def unchanged(lswap: Lswap, name: str) -> dict[str, httpx.Response]:
    before = used(await lswap.state(), name)
    answers = await read_all(lswap, name)
    assert used(await lswap.state(), name) == before
    return answers


async def test_of_a_model_that_is_not_loaded(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        for answer in (await unchanged(lswap, "alpha")).values():
            assert error_of(answer, 400)["code"] == "model_not_loaded"


async def test_of_a_model_that_loads(lab: Lab) -> None:
    """As llama-server answers then: 503. Nobody waits, so a load that is given up stays so."""
    async with lab.lswap({"alpha": lab.fake("alpha", env={"FAKE_HANG": "1"})}) as lswap:
        await lswap.client.post("/models/load", json={"model": "alpha"})
        await lswap.until_state("alpha", "loading")
        for answer in (await unchanged(lswap, "alpha")).values():
            error = error_of(answer, 503)
            assert (error["code"], error["state"]) == ("model_loading", "loading")
            assert int(answer.headers["retry-after"]) > 0


async def test_of_a_model_that_is_ready_and_near_its_ttl(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha", ttl="2s")}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        answers = await unchanged(lswap, "alpha")
        statuses = {path: answer.status_code for path, answer in answers.items()}
        assert {path for path, status in statuses.items() if status != 200} <= {"/upstream/"}
        assert answers["/props"].headers["x-lswap-model"] == "alpha"

        async def poll() -> None:
            while True:  # far more often than the ttl
                await lswap.client.get("/slots", params={"model": "alpha"})

        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(poll())
            await lswap.until_state("alpha", "unloaded")
            polling.cancel()


async def test_of_a_model_that_sleeps(lab: Lab) -> None:
    """It sleeps on, and nobody's memory is taken for it."""
    models = {
        "alpha": lab.preset("alpha", size="150MiB", sleep="1s"),
        "beta": lab.preset("beta", size="100MiB"),
    }
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.until_state("alpha", "sleeping")
        assert await lswap.chat("beta") == lab.sentence("beta")
        for path, answer in (await unchanged(lswap, "alpha")).items():
            if path.removeprefix("/upstream") in WAKING:
                error = error_of(answer, 400)
                assert error["code"] == "model_not_loaded"
                assert "sleeps" in error["message"]
            else:
                assert answer.status_code == 200, (path, answer.text)
        props = await lswap.client.get("/props", params={"model": "alpha"})
        assert props.json()["is_sleeping"] is True
        assert (await lswap.model("beta")).state == "ready"
        # Who says so wakes it.
        params = {"model": "alpha", "autoload": "true"}
        assert (await lswap.client.get("/slots", params=params)).status_code == 200
        assert (await lswap.model("alpha")).state == "ready"


@pytest.mark.parametrize("path", [*ROUTES, "/upstream/alpha/slots"])
async def test_it_falls_asleep_while_it_is_polled(lab: Lab, path: str) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha", sleep="1s")}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")

        async def poll() -> None:
            while True:
                await lswap.client.get(path, params={"model": "alpha"})

        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(poll())
            await lswap.until_state("alpha", "sleeping")
            polling.cancel()


async def test_what_is_remembered_is_not_older_than_the_last_request(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha", sleep="1m")}) as lswap:
        await lswap.chat("alpha", max_tokens=1)
        first = await lswap.child_slots("alpha")
        assert await lswap.child_slots("alpha") == first
        await lswap.chat("alpha", max_tokens=3)
        assert await lswap.child_slots("alpha") != first


async def test_of_a_model_that_drains(lab: Lab) -> None:
    """It answers to its end; a read never has it loaded again."""
    async with lab.lswap({"alpha": lab.endless("alpha")}) as lswap:
        async with lswap.stream("alpha", max_tokens=100_000) as stream:
            await stream.read(3)
            await lswap.client.post("/models/unload", json={"model": "alpha"})
            await lswap.until_state("alpha", "draining")
            answers = await read_all(lswap, "alpha")
            assert answers["/slots"].status_code == 200
            assert any(slot["is_processing"] for slot in answers["/slots"].json())
        await lswap.until_state("alpha", "unloaded")
        assert model_of(await lswap.state(), "alpha").loads == 1


async def test_of_a_model_whose_memory_is_wanted(lab: Lab) -> None:
    """Its gate is closed: who reads does not wait there, to be served by another load."""
    models = {"alpha": lab.endless("alpha"), "beta": lab.preset("beta", size="150MiB")}
    async with lab.lswap(models, policy={"max_wait": "0s"}) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha", max_tokens=100_000) as stream:
            await stream.read(3)
            other = tasks.create_task(lswap.chat("beta"))
            await lswap.until(lambda now: instance_of(now, "alpha").gate == "closed")
            for path, answer in (await read_all(lswap, "alpha")).items():
                assert answer.status_code == 200 or path == "/upstream/", (path, answer.text)
        assert await other == lab.sentence("beta")
        assert (await lswap.model("alpha")).loads == 1
        assert (await lswap.model("alpha")).waiting == 0


async def test_of_a_model_that_does_not_load(lab: Lab) -> None:
    path = lab.folder / "broken.gguf"
    path.write_bytes(b"GGUF and nothing of it")
    async with lab.lswap({"alpha": {"model": str(path), "memory": {"host": "50MiB"}}}) as lswap:
        assert (await lswap.post_chat("alpha")).status_code == 503
        for answer in (await read_all(lswap, "alpha")).values():
            assert error_of(answer, 503)["code"] == "model_failed"
