"""The feeds over HTTP, llama.cpp's router routes, open requests, pins: with real children."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from httpx_sse import aconnect_sse

from llamaswap_py.client import calls
from llamaswap_py.client.remote import Remote
from tests.real.answers import error_of
from tests.real.harness import poll

if TYPE_CHECKING:
    from llamaswap_py.client.answers import ServerEvent
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def test_the_feed_tells_of_a_load_and_is_replayed(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        await lswap.chat("alpha")
        seen: list[Any] = []
        path = "/lswap/v1/events"
        async with asyncio.timeout(60):
            async with aconnect_sse(lswap.client, "GET", path, params={"after": "0"}) as source:
                async for event in source.aiter_sse():
                    seen.append(event)
                    if event.event == "state" and event.json()["state"] == "ready":
                        break
        states = [one.json()["state"] for one in seen if one.event == "state"]
        assert states == ["loading", "ready"]
        kinds = {one.json()["kind"] for one in seen if one.event == "decision"}
        assert {"load", "ready"} <= kinds
        ids = [int(one.id) for one in seen]
        assert ids == list(range(1, len(ids) + 1))
        headers = {"Last-Event-ID": str(ids[-2])}
        async with asyncio.timeout(60):
            async with aconnect_sse(lswap.client, "GET", path, headers=headers) as source:
                again = await anext(source.aiter_sse())
        assert int(again.id) == ids[-1]
        assert again.data == seen[-1].data
        kept = await asyncio.to_thread(_kept, lswap.url)
        assert [one.event for one in kept[: len(seen)]] == [one.event for one in seen]
        assert [one.data for one in kept[: len(seen)]] == [one.json() for one in seen]
        rest = {"after": str(ids[-2]), "follow": "false"}
        answer = await lswap.client.get(path, params=rest)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.text.startswith(f"id: {ids[-1]}\nevent: {again.event}\ndata: ")


def _kept(url: str) -> list[ServerEvent]:
    with Remote(url) as remote, remote.stream(calls.kept_events()) as events:
        return list(events)


async def test_the_router_s_own_events_and_routes(lab: Lab) -> None:
    models = {name: lab.preset(name, size="50MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap:
        async with asyncio.timeout(60):
            async with aconnect_sse(lswap.client, "GET", "/models/sse") as source:
                events = source.aiter_sse()
                answer = await lswap.client.post("/models/load", json={"model": "alpha"})
                assert answer.json() == {"success": True}
                first = (await anext(events)).json()
                assert first == {
                    "model": "alpha",
                    "event": "model_status",
                    "data": {"status": "loading"},
                }
                while (told := (await anext(events)).json())["data"]["status"] != "loaded":
                    assert told["data"]["progress"]["value"] <= 1
                assert told["event"] == "status_change"
                assert told["data"]["info"]["meta"]["n_ctx"] > 0
                refused = await lswap.client.post("/models/load", json={"model": "alpha"})
                assert refused.status_code == 400
                assert refused.json()["error"]["message"] == "model is already running"
                done = await lswap.client.post("/models/unload", json={"model": "alpha"})
                assert done.json() == {"success": True}
                assert (await anext(events)).json()["data"] == {
                    "status": "unloaded",
                    "exit_code": 0,
                }
        for path, status in (("/models/load", 404), ("/models/unload", 400)):
            unknown = await lswap.client.post(path, json={"model": "gamma"})
            assert unknown.status_code == status
            error = unknown.json()["error"]
            assert error["message"] == "model is not found"
            assert error["code"] == status
        idle = await lswap.client.post("/models/unload", json={"model": "beta"})
        assert idle.json()["error"]["message"] == "model is not running"
        ids = {"conversation_ids": ["x"]}
        assert (await lswap.client.post("/v1/streams/lookup", json=ids)).json() == []
        assert (await lswap.client.get("/v1/stream?conv_id=x")).status_code == 404
        assert (await lswap.client.delete("/v1/stream?conv_id=x")).status_code == 204
        assert (await lswap.client.get("/tools")).status_code == 403


async def test_open_requests_are_listed_and_can_be_cancelled(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha", concurrency=1)}
    async with lab.lswap(models) as lswap, lswap.stream("alpha", max_tokens=100_000) as stream:
        await stream.read(3)
        waiting = asyncio.create_task(lswap.post_chat("alpha"))
        await lswap.until(lambda state: state.models[0].waiting == 1)
        listed = (await lswap.client.get("/lswap/v1/requests")).json()["requests"]
        running, queued = listed
        assert (running["state"], queued["state"]) == ("running", "waiting")
        assert running["model"] == queued["model"] == "alpha"
        assert running["bytes"] > 0
        assert running["tokens"] >= 3  # an event each
        assert queued["tokens"] == 0
        gone = await lswap.client.post(f"/lswap/v1/requests/{queued['id']}/cancel")
        assert gone.json()["state"] == "cancelled"
        assert error_of(await waiting, 410)["code"] == "cancelled"
        await lswap.client.post(f"/lswap/v1/requests/{running['id']}/cancel")
        await stream.rest()
        assert stream.error is not None
        assert stream.error["code"] == "cancelled"
        await lswap.until_idle()
        error = error_of(await lswap.client.post("/lswap/v1/requests/nobody/cancel"), 404)
        assert error["code"] == "not_found"


async def test_pins_by_hand(lab: Lab) -> None:
    models = {name: lab.preset(name, size="150MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap:
        await lswap.chat("alpha")
        assert (await lab.cli("pin", "alpha", "--url", lswap.url)).code == 0
        assert error_of(await lswap.post_chat("beta"), 400)["code"] == "model_too_large"
        assert (await lab.cli("unpin", "alpha", "--url", lswap.url)).out == ("alpha is unpinned\n")
        assert await lswap.chat("beta") == lab.sentence("beta")


async def test_metrics_count_what_was_answered(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        words = len((await lswap.chat("alpha")).split()) + 1

        async def counted() -> bool:
            text = (await lswap.client.get("/metrics")).text
            line = (
                'lswap_requests_total{model="alpha",route="/v1/chat/completions",status="200"} 1.0'
            )
            more = (
                'lswap_model_state{model="alpha",state="ready"} 1.0',
                'lswap_first_byte_seconds_count{model="alpha"} 1.0',
                f'lswap_tokens_out_total{{model="alpha"}} {words}.0',
                'lswap_tokens_in_total{model="alpha"}',
            )
            return line in text and all(one in text for one in more)

        await poll(counted)
        child = await lswap.client.get("/metrics", params={"model": "alpha"})
        assert "llamacpp:" in child.text
        assert json.loads((await lswap.client.get("/health")).text) == {"status": "ok"}


async def test_the_children_s_metrics_are_merged_and_wake_none(lab: Lab) -> None:
    models = {name: lab.preset(name, size="50MiB") for name in ("alpha", "beta", "gamma")}
    models["beta"]["sleep"] = "1s"
    async with lab.lswap(models) as lswap:
        await lswap.chat("alpha")
        await lswap.chat("beta")
        await lswap.until_state("beta", "sleeping")
        text = (await lswap.client.get("/metrics")).text
        told = [
            line for line in text.splitlines() if line.startswith("llamacpp:tokens_predicted_t")
        ]
        assert len(told) == 1
        assert told[0].startswith('llamacpp:tokens_predicted_total{model="alpha"} ')
        assert float(told[0].split()[-1]) > 0
        assert (await lswap.model("beta")).state == "sleeping"
        assert (await lswap.model("gamma")).state == "unloaded"


async def test_adapters_are_set_again_after_a_reload(lab: Lab) -> None:
    """POST /lora-adapters is remembered, and comes before any request to the new child."""
    adapter = lab.write_adapter()
    preset = lab.preset("alpha", args={"lora": str(adapter)})
    async with lab.lswap({"alpha": preset}) as lswap:
        await lswap.chat("alpha")
        path, params = "/lora-adapters", {"model": "alpha"}
        assert (await lswap.client.get(path, params=params)).json()[0]["scale"] == 1.0
        body = [{"id": 0, "scale": 0.25}]
        changed = await lswap.client.post(path, params=params, json=body)
        assert changed.json() == {"success": True}
        await lswap.client.post("/lswap/v1/models/alpha/unload")
        await lswap.chat("alpha")
        assert (await lswap.client.get(path, params=params)).json()[0]["scale"] == 0.25
