"""What has a name that a client can say belongs to whoever began it: docs/security.md lists it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import PATIENCE, Stream, chat_body, error_of
from tests.real.harness import poll
from tests.real.test_api_keys import ADMIN
from tests.real.test_rights import as_key, write_keys

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
NAME = "5f2b7a52-0000-4000-8000-1f2e3d4c5b6a::alpha"
RESUME = "/v1/stream"
ANN, BOB = as_key("ann"), as_key("bob")


async def leave(lswap: Lswap, key: dict[str, str], *, tokens: int = 100_000) -> str:
    """Begin the answer of a conversation, read some of it, and go away; return what was read."""
    headers = {**key, "X-Conversation-Id": NAME}
    async with lswap.stream("alpha", headers=headers, max_tokens=tokens) as stream:
        await stream.read(5)
        return stream.text


async def detached(lswap: Lswap) -> int:
    answer = await lswap.client.get("/lswap/v1/state", headers=ADMIN)
    (one,) = answer.json()["instances"]
    return int(one["detached"])


async def until_detached(lswap: Lswap, count: int) -> None:
    async def there() -> bool:
        return await detached(lswap) == count

    await poll(there)


async def entries(lswap: Lswap, key: dict[str, str]) -> list[dict[str, Any]]:
    for ids in ([NAME], [NAME.partition("::")[0]]):
        body = {"conversation_ids": ids}
        answer = await lswap.client.post("/v1/streams/lookup", json=body, headers=key)
        assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


async def test_a_conversation_belongs_to_the_key_that_began_it(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, bob={})
    params = {"conv_id": NAME}
    async with lab.lswap({"alpha": lab.endless("alpha", concurrency=3)}, keys=keys) as lswap:
        await leave(lswap, ANN)
        await until_detached(lswap, 1)
        # To know its name is not enough to read it, to end it, or to learn that it is there.
        for path in (RESUME, f"/upstream/alpha{RESUME}", "/upstream/alpha/v%31/str%65am"):
            for method in ("GET", "HEAD", "DELETE"):
                said = await lswap.client.request(method, path, params=params, headers=BOB)
                wanted = 403 if "upstream" in path else {"DELETE": 204}.get(method, 404)
                assert said.status_code == wanted, (method, path)
        assert await entries(lswap, BOB) == []
        path = "/upstream/alpha/v1/streams/lookup"
        said = await lswap.client.post(path, json={"conversation_ids": [NAME]}, headers=BOB)
        assert said.status_code == 403
        # One of the same name is another, also for the child: nobody's ends by it.
        await leave(lswap, BOB)
        await until_detached(lswap, 2)
        for key in (ANN, BOB):
            (entry,) = await entries(lswap, key)
            assert (entry["conversation_id"], entry["is_done"]) == (NAME, False)
        await lswap.client.delete(RESUME, params=params, headers=BOB)
        await until_detached(lswap, 1)
        assert await entries(lswap, BOB) == []
        assert (await lswap.client.get(RESUME, params=params, headers=BOB)).status_code == 404
        async with (
            asyncio.timeout(PATIENCE),
            lswap.client.stream("GET", RESUME, params=params, headers=ANN) as response,
        ):
            assert response.status_code == 200
            again = Stream(response)
            await again.read(20)
        # Whoever runs lswap may all.
        assert [one["is_done"] for one in await entries(lswap, ADMIN)] == [False]
        async with lswap.client.stream("GET", RESUME, params=params, headers=ADMIN) as response:
            await Stream(response).read(20)
        await lswap.client.delete(RESUME, params=params, headers=ADMIN)
        await until_detached(lswap, 0)
        assert (await lswap.client.get(RESUME, params=params, headers=ANN)).status_code == 404


async def test_an_answer_that_has_ended_is_kept_for_its_own_key(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, bob={})
    params = {"conv_id": NAME}
    async with lab.lswap({"alpha": lab.endless("alpha")}, keys=keys) as lswap:
        await leave(lswap, ANN, tokens=300)
        await until_detached(lswap, 0)
        await lswap.client.post("/lswap/v1/models/alpha/unload", headers=ADMIN)
        assert [one["is_done"] for one in await entries(lswap, ANN)] == [True]
        assert await entries(lswap, BOB) == []
        assert (await lswap.client.get(RESUME, params=params, headers=BOB)).status_code == 404
        whole = await lswap.client.get(RESUME, params=params, headers=ANN)
        assert whole.text.rstrip().endswith("data: [DONE]")
        rest = await lswap.client.get(RESUME, params={**params, "from": "100"}, headers=ANN)
        assert rest.text == whole.text[100:]


async def test_a_request_is_made_under_one_of_its_own_key(lab: Lab) -> None:
    """Under somebody else's it would pass the gate that is closed for everybody else."""
    keys = write_keys(lab.folder, ann={}, bob={})
    models = {
        "alpha": lab.endless("alpha", size="100MiB"),
        "beta": lab.preset("beta", size="150MiB"),
    }
    async with lab.lswap(models, keys=keys) as lswap:
        headers = {**ANN, "x-request-id": "outer"}
        async with lswap.stream("alpha", headers=headers, max_tokens=100_000) as stream:
            await stream.read(3)
            inner = {"x-lswap-parent": "outer", "x-lswap-max-wait": "200ms"}
            for key, status, code in (
                (ANN, 409, "would_deadlock"),
                (ADMIN, 409, "would_deadlock"),
                (BOB, 503, "queue_timeout"),
            ):
                body = chat_body("beta")
                answer = await lswap.client.post(
                    "/v1/chat/completions", json=body, headers={**key, **inner}
                )
                assert error_of(answer, status)["code"] == code
