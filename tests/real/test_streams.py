"""Answers that outlive their clients, read again: llama.cpp's resumable streams, real children."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from tests.builds import require
from tests.real.answers import PATIENCE, Stream, chat_body, error_of, instance_of, model_of
from tests.real.harness import poll
from tests.real.test_api_keys import ADMIN, write_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.snapshot import Snapshot
    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio

NAME = "5f2b7a52-0000-4000-8000-1f2e3d4c5b6a::alpha"
RESUME = "/v1/stream"
LOOKUP = "/v1/streams/lookup"
NO_STREAMS = (
    "llama-server keeps no answer without its client. A generation ends when its client leaves"
)
ANN = {"authorization": "Bearer ann"}


def _long(lab: Lab, **keys: Any) -> Preset:
    """Return a preset whose answers take seconds."""
    return lab.endless("alpha", layers=256, **keys)


async def _leave(lswap: Lswap, *, words: int = 5, tokens: int = 600, name: str = NAME) -> None:
    """Ask for that many tokens, read a few words, and go away."""
    headers = {"X-Conversation-Id": name}
    async with lswap.stream("alpha", headers=headers, max_tokens=tokens) as stream:
        await stream.read(words)


async def _entries(lswap: Lswap, *ids: str) -> list[dict[str, Any]]:
    answer = await lswap.client.post("/v1/streams/lookup", json={"conversation_ids": [*ids]})
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


async def _kinds(lswap: Lswap) -> list[str]:
    return [one.kind for one in await lswap.decisions("alpha")]


async def test_an_answer_goes_on_without_its_client_and_is_read_again(lab: Lab) -> None:
    require(lab.engine, LOOKUP, NO_STREAMS)
    async with lab.lswap({"alpha": _long(lab)}) as lswap:
        await _leave(lswap)
        state = await lswap.until(lambda now: instance_of(now, "alpha").detached == 1)
        assert instance_of(state, "alpha").leases == 1
        (entry,) = await _entries(lswap, NAME)
        assert entry["conversation_id"] == NAME
        assert not entry["is_done"]
        async with lswap.client.stream("GET", RESUME, params={"conv_id": NAME}) as response:
            assert response.status_code == 200
            assert response.headers["x-lswap-model"] == "alpha"
            again = Stream(response)
            await again.rest()
        assert again.done
        assert again.finish == "length"
        assert len(again.words) > 400
        assert again.text.startswith(lab.sentence("alpha") + " " + lab.sentence("alpha"))
        await lswap.until_idle()
        assert [one["is_done"] for one in await _entries(lswap, NAME)] == [True]
        # What is kept can be read while the model stays, from any byte on.
        params = {"conv_id": NAME, "from": str(entry["total_bytes"])}
        rest = await lswap.client.get(RESUME, params=params)
        assert rest.text.rstrip().endswith("data: [DONE]")
        # The web UIs of older builds have the id in the path.
        path = f"{RESUME}/{quote(NAME, safe='')}"
        same = await lswap.client.get(path, params={"from": params["from"]})
        assert same.content == rest.content
        assert (await _kinds(lswap))[:3] == ["load", "ready", "detached"]


async def test_it_is_free_when_it_has_ended(lab: Lab) -> None:
    async with lab.lswap({"alpha": _long(lab)}) as lswap:
        await _leave(lswap, tokens=200)
        await lswap.until_idle()
        assert [one["is_done"] for one in await _entries(lswap, NAME)] == [True]
        assert not any(slot["is_processing"] for slot in await lswap.child_slots("alpha"))


async def test_what_has_ended_outlives_its_model(lab: Lab) -> None:
    require(lab.engine, LOOKUP, NO_STREAMS)
    models = {"alpha": _long(lab), "beta": lab.preset("beta")}
    async with lab.lswap(models) as lswap:
        await _leave(lswap, tokens=400)
        assert await lswap.chat("beta") == lab.sentence("beta")
        assert (await lswap.model("alpha")).state == "unloaded"
        (entry,) = await _entries(lswap, NAME.partition("::")[0])
        assert (entry["conversation_id"], entry["is_done"]) == (NAME, True)
        whole = await lswap.client.get(RESUME, params={"conv_id": NAME})
        assert whole.headers["content-type"] == "text/event-stream"
        assert len(whole.content) == entry["total_bytes"]
        assert whole.text.count("data: ") > 50
        assert whole.text.endswith("data: [DONE]\n\n")
        end = await lswap.client.get(RESUME, params={"conv_id": NAME, "from": "100"})
        assert end.content == whole.content[100:]
        past = await lswap.client.get(RESUME, params={"conv_id": NAME, "from": "999999999"})
        assert (past.status_code, past.content) == (200, b"")
        wrong = await lswap.client.get(RESUME, params={"conv_id": NAME, "from": "x"})
        assert error_of(wrong, 400)["param"] == "from"
        await lswap.client.delete(RESUME, params={"conv_id": NAME})
        assert await _entries(lswap, NAME) == []
        assert (await lswap.model("alpha")).state == "unloaded"


async def test_a_stop_ends_it(lab: Lab) -> None:
    require(lab.engine, LOOKUP, NO_STREAMS)
    async with lab.lswap({"alpha": _long(lab)}) as lswap:
        await _leave(lswap, tokens=100_000)
        await lswap.until(lambda now: instance_of(now, "alpha").detached == 1)
        answer = await lswap.client.delete(RESUME, params={"conv_id": NAME})
        assert answer.status_code == 204
        await lswap.until_idle()
        await lswap.until_slots_are_free("alpha")
        assert await _entries(lswap, NAME) == []
        gone = await lswap.client.get(RESUME, params={"conv_id": NAME})
        assert error_of(gone, 404)["message"] == "Stream not found or expired"
        assert (await lswap.client.delete(RESUME, params={"conv_id": NAME})).status_code == 204


async def test_it_gives_way_to_one_who_waits_for_the_memory(lab: Lab) -> None:
    models = {"alpha": _long(lab), "beta": lab.preset("beta")}
    policy = {"max_wait": "0s", "detached_timeout": "1s"}
    async with lab.lswap(models, policy=policy) as lswap:
        await _leave(lswap, tokens=100_000)
        await lswap.until(lambda now: instance_of(now, "alpha").detached == 1)
        assert await lswap.chat("beta") == lab.sentence("beta")
        (revoked,) = [one for one in await lswap.decisions("alpha") if one.kind == "revoked"]
        assert "nobody came back for it" in revoked.reason
        assert await _entries(lswap, NAME) == []
        gone = await lswap.client.get(RESUME, params={"conv_id": NAME})
        assert error_of(gone, 404)["type"] == "not_found_error"


async def test_a_reader_keeps_it_from_those_who_wait(lab: Lab) -> None:
    """The page is reloaded while another client wants the memory: nothing of the answer is lost."""
    models = {"alpha": _long(lab), "beta": lab.preset("beta")}
    async with lab.lswap(models, policy={"max_wait": "0s"}) as lswap:
        await _leave(lswap, tokens=600)
        async with asyncio.TaskGroup() as tasks:
            other = tasks.create_task(lswap.chat("beta"))
            await lswap.until(lambda now: instance_of(now, "alpha").gate == "closed")
            answer = await lswap.client.get(RESUME, params={"conv_id": NAME}, timeout=PATIENCE)
        assert answer.text.rstrip().endswith("data: [DONE]")
        assert await other == lab.sentence("beta")
        assert "attached" in await _kinds(lswap)


async def test_an_operator_s_cancel_ends_the_generation_too(lab: Lab) -> None:
    headers = {"X-Conversation-Id": NAME}
    async with (
        lab.lswap({"alpha": _long(lab)}) as lswap,
        lswap.stream("alpha", headers=headers, max_tokens=100_000) as stream,
    ):
        await stream.read(3)
        (one,) = (await lswap.client.get("/lswap/v1/requests")).json()["requests"]
        await lswap.client.post(f"/lswap/v1/requests/{one['id']}/cancel")
        await stream.rest()
        assert stream.error is not None
        await lswap.until_idle()
        await lswap.until_slots_are_free("alpha")


async def test_what_waits_for_a_load_can_be_stopped(lab: Lab) -> None:
    models = {"alpha": lab.heavy("alpha", mib=1500)}
    async with lab.lswap(models) as lswap:
        headers = {"X-Conversation-Id": NAME}
        body = chat_body("alpha", stream=True)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(
                lswap.client.post("/v1/chat/completions", json=body, headers=headers)
            )
            await lswap.until_state("alpha", "loading")
            early = await lswap.client.get(RESUME, params={"conv_id": NAME})
            assert error_of(early, 503)["message"] == "Stream owner model is loading, retry later"
            await lswap.client.delete(RESUME, params={"conv_id": NAME})
        error = error_of(await asked, 400)  # as llama.cpp's router
        assert error["code"] == "stopped"
        assert "cancelled" in error["message"], "the word that llama.cpp's router has"


async def _ask_and_leave(lswap: Lswap, waits: Callable[[Snapshot], bool], **body: Any) -> None:
    """Ask, and go away before there is a lease, as a page that is reloaded."""
    headers, body = {"X-Conversation-Id": NAME}, chat_body("alpha", stream=True, **body)
    async with asyncio.TaskGroup() as tasks:
        path = "/v1/chat/completions"
        asked = tasks.create_task(lswap.client.post(path, json=body, headers=headers))
        await lswap.until(waits)
        asked.cancel()


async def _read_again(lswap: Lswap) -> str:
    """Read it as the web UI does: as often as it is told that the model is not ready."""
    answers: list[httpx.Response] = []

    async def answered() -> bool:
        answers.append(await lswap.client.get(RESUME, params={"conv_id": NAME}))
        return answers[-1].status_code != 503

    await poll(answered)
    assert answers[0].status_code == 503
    assert answers[-1].status_code == 200, answers[-1].text
    return answers[-1].text


def _loads(now: Snapshot) -> bool:
    return model_of(now, "alpha").state == "loading"


async def test_a_page_reloaded_while_its_model_loads_gets_the_answer(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.heavy("alpha", mib=1500)}) as lswap:
        await _ask_and_leave(lswap, _loads)
        (one,) = (await lswap.client.get("/lswap/v1/requests")).json()["requests"]
        assert (one["state"], one["model"]) == ("waiting", "alpha")
        text = await _read_again(lswap)
        assert text.rstrip().endswith("data: [DONE]")
        assert text.count("data: ") > 3
        await lswap.until_idle()


async def test_a_page_reloaded_while_its_request_waits_gets_the_answer(lab: Lab) -> None:
    """Behind another one on its model, and behind the load of another model."""
    models = {"alpha": lab.endless("alpha", args={"parallel": 1}), "beta": lab.endless("beta")}
    async with lab.lswap(models, policy={"max_wait": "0s"}) as lswap:
        for holder in models:
            async with lswap.stream(holder, max_tokens=1500) as stream:
                await stream.read(1)

                def waits(now: Snapshot) -> bool:
                    return model_of(now, "alpha").waiting == 1

                await _ask_and_leave(lswap, waits, max_tokens=5)
                early = await lswap.client.get(RESUME, params={"conv_id": NAME})
                assert error_of(early, 503)["type"] == "unavailable_error"
                await stream.rest()
                assert stream.finish == "length"
            assert "data: [DONE]" in await _read_or_wait(lswap)
            await lswap.client.delete(RESUME, params={"conv_id": NAME})


async def _read_or_wait(lswap: Lswap) -> str:
    found: list[httpx.Response] = []

    async def answered() -> bool:
        found.append(await lswap.client.get(RESUME, params={"conv_id": NAME}))
        return found[-1].status_code == 200

    await poll(answered)
    return found[-1].text


async def test_a_stop_ends_what_waits_without_a_client(lab: Lab) -> None:
    """Nobody wants the load any more, so it is given up."""
    async with lab.lswap({"alpha": lab.fake("alpha", env={"FAKE_HANG": "1"})}) as lswap:
        await _ask_and_leave(lswap, _loads)
        early = await lswap.client.get(RESUME, params={"conv_id": NAME})
        assert error_of(early, 503)["message"] == "Stream owner model is loading, retry later"
        assert (await lswap.client.delete(RESUME, params={"conv_id": NAME})).status_code == 204
        await lswap.until_state("alpha", "unloaded")
        assert (await lswap.client.get("/lswap/v1/requests")).json()["requests"] == []
        gone = await lswap.client.get(RESUME, params={"conv_id": NAME})
        assert error_of(gone, 404)["type"] == "not_found_error"


async def test_who_comes_back_reads_why_there_is_no_answer(lab: Lab) -> None:
    """A load that fails, and a request that the model refuses: as the event of the stream."""
    gate = lab.folder / "gate"
    env = {"FAKE_LOAD_GATE": str(gate), "FAKE_CRASH": "ready:9"}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env, load_stall="1s")}) as lswap:
        await _ask_and_leave(lswap, _loads)
        (event,) = (await _read_again(lswap)).split("\n\n")[:-1]
        assert '"code":"model_failed"' in event
        (entry,) = await _entries(lswap, NAME)
        assert entry["is_done"] is True
    async with lab.lswap({"alpha": lab.heavy("alpha", mib=1500)}) as lswap:
        long = [{"role": "user", "content": "hello " * 2000}]
        await _ask_and_leave(lswap, _loads, messages=long)
        assert "exceed_context_size_error" in await _read_or_wait(lswap)
        await lswap.until_idle()


async def test_what_waits_without_a_client_counts_against_its_key(lab: Lab) -> None:
    models = {"alpha": lab.fake("alpha", env={"FAKE_HANG": "1"})}
    async with lab.lswap(models, keys=write_keys(lab.folder)) as lswap:
        headers = {**ANN, "X-Conversation-Id": NAME}
        path, body = "/v1/chat/completions", chat_body("alpha", stream=True)

        async def waits() -> bool:
            answer = await lswap.client.get("/lswap/v1/requests", headers=ADMIN)
            return any(one["state"] == "waiting" for one in answer.json()["requests"])

        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(lswap.client.post(path, json=body, headers=headers))
            await poll(waits)
            asked.cancel()
        other = {**headers, "X-Conversation-Id": "another::alpha"}
        refused = await lswap.client.post(path, json=body, headers=other)
        assert error_of(refused, 429)["code"] == "too_many_requests"
        await lswap.client.delete(RESUME, params={"conv_id": NAME}, headers=ANN)


async def test_the_newest_answer_of_a_conversation_counts(lab: Lab) -> None:
    """As in llama-server, where a new one ends the one before (create_or_replace)."""
    async with lab.lswap({"alpha": _long(lab)}, policy={"detached_timeout": "1s"}) as lswap:
        await _leave(lswap, tokens=100_000)
        await lswap.until(lambda now: instance_of(now, "alpha").detached == 1)
        headers = {"X-Conversation-Id": NAME}
        async with lswap.stream("alpha", headers=headers, max_tokens=1500) as stream:
            await stream.read(1)
            await lswap.until(lambda now: instance_of(now, "alpha").leases == 1)
            await stream.rest()
        assert (stream.error, stream.finish) == (None, "length")
        await lswap.until_idle()
        await lswap.until_slots_are_free("alpha")


@pytest.mark.parametrize("how", ["HEAD", "nowhere"])
async def test_who_reads_nothing_is_no_reader(lab: Lab, how: str) -> None:
    async with lab.lswap({"alpha": _long(lab)}) as lswap:
        await _leave(lswap, tokens=100_000)
        await lswap.until(lambda now: instance_of(now, "alpha").detached == 1)
        params = {"conv_id": NAME} | ({"from": "nowhere"} if how != "HEAD" else {})
        method = "HEAD" if how == "HEAD" else "GET"
        with suppress(httpx.TimeoutException):
            await lswap.client.request(method, RESUME, params=params, timeout=2)
        await lswap.until(lambda now: instance_of(now, "alpha").detached == 1)
        assert "attached" in await _kinds(lswap)
        await lswap.client.delete(RESUME, params={"conv_id": NAME})


@pytest.mark.parametrize("how", ["resume: false", "no stream", "another path"])
async def test_without_resuming_it_ends_with_its_client(lab: Lab, how: str) -> None:
    preset = _long(lab, **({"resume": False} if how == "resume: false" else {}))
    async with lab.lswap({"alpha": preset}) as lswap:
        headers = {"X-Conversation-Id": NAME}
        if how == "no stream":
            body = chat_body("alpha", max_tokens=100_000)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await lswap.client.post("/v1/chat/completions", json=body, headers=headers)
        elif how == "another path":
            path, body = "/upstream/alpha/completion", {"prompt": "hi", "stream": True}
            async with lswap.client.stream("POST", path, json=body, headers=headers) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
        else:
            await _leave(lswap, tokens=100_000)
        await lswap.until_idle()
        await lswap.until_slots_are_free("alpha")
        assert await _entries(lswap, NAME) == []


async def test_what_is_asked_wrongly(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        assert await _entries(lswap) == []
        assert await _entries(lswap, "nobody") == []
        for body in (b"", b"[]", b"{", b'{"conversation_ids": 3}', b'{"conversation_ids": [1]}'):
            answer = await lswap.client.post("/v1/streams/lookup", content=body)
            assert (answer.status_code, answer.json()) == (200, [])
        for method in ("GET", "DELETE"):
            nameless = await lswap.client.request(method, RESUME)
            assert error_of(nameless, 400)["param"] == "conv_id"


@pytest.mark.parametrize("whose", ["a key", "an address"])
async def test_it_counts_against_its_keys_requests(lab: Lab, whose: str) -> None:
    """A key, or an address, with one request at a time cannot leave answer after answer behind."""
    keyed = {"keys": write_keys(lab.folder)}
    settings: Any = keyed if whose == "a key" else {"limits": {"max_in_flight": 1}}
    mine = {**ANN, "X-Conversation-Id": NAME}
    other = {**ANN, "X-Conversation-Id": "another::alpha"}
    async with lab.lswap({"alpha": _long(lab, concurrency=2)}, **settings) as lswap:

        async def ask(headers: dict[str, str], **body: Any) -> httpx.Response:
            body = chat_body("alpha", max_tokens=5, **body)
            return await lswap.client.post("/v1/chat/completions", json=body, headers=headers)

        async def slots() -> tuple[int, int]:
            answer = await lswap.client.get("/lswap/v1/state", headers=ADMIN)
            (one,) = answer.json()["instances"]
            return one["detached"], one["leases"]

        async def left() -> bool:
            return await slots() == (1, 1)

        async def free() -> bool:
            return await slots() == (0, 0)

        async with lswap.stream("alpha", headers=mine, max_tokens=100_000) as stream:
            await stream.read(5)
        await poll(left)
        refused = await ask(other, stream=True)
        assert error_of(refused, 429)["code"] == "too_many_requests"
        # To look at it, and to stop it, costs nothing; and the same conversation takes its place.
        lookup = {"conversation_ids": [NAME]}
        found = await lswap.client.post("/v1/streams/lookup", json=lookup, headers=ANN)
        assert [one["is_done"] for one in found.json()] == [False]
        assert (await ask(mine, stream=True)).status_code == 200
        await poll(free)
        async with lswap.stream("alpha", headers=mine, max_tokens=100_000) as stream:
            await stream.read(5)
        await poll(left)
        params = {"conv_id": NAME}
        stopped = await lswap.client.delete(RESUME, params=params, headers=ANN)
        assert stopped.status_code == 204
        await poll(free)
        assert (await ask(other)).status_code == 200
