"""One client asks for everything at once: the others get theirs all the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llamaswap_py.config.api_keys import hash_secret
from tests.real.answers import chat_body, error_of, model_of

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
LIMIT = 6
HOGS = 12
HONEST = 43


def write_keys(lab: Lab) -> dict[str, str]:
    keys = [
        {"name": name, "hash": hash_secret(name.encode()), **more}
        for name, more in (("hog", {}), ("vip", {"priority": 50}), ("ann", {}))
    ]
    path = lab.folder / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": keys}))
    path.chmod(0o600)
    return {"file": str(path)}


class Crowd:
    """The requests of one key in a test, and how they ended."""

    def __init__(self, lswap: Lswap, key: str, numbers: Any) -> None:
        self.lswap = lswap
        self.key = key
        self.statuses: Counter[int] = Counter()
        self.refused = asyncio.Event()
        self.errors: list[dict[str, Any]] = []
        self._numbers = numbers

    async def ask(self) -> None:
        """Ask once; each request claims to be somebody else's."""
        number = next(self._numbers)
        answer = await self.lswap.client.post(
            CHAT,
            json={**chat_body("alpha", max_tokens=8), "user": f"user-{number}"},
            headers={
                "authorization": f"Bearer {self.key}",
                "x-request-id": f"id-{number}",
                "x-forwarded-for": f"192.0.2.{number % 250}",
            },
        )
        self.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            self.refused.set()
            self.errors.append(error_of(answer, answer.status_code))
            assert int(answer.headers["retry-after"]) >= 1


async def test_a_key_that_fills_the_queue_takes_no_place_from_the_others(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", args={"parallel": 1})}
    policy = {"queue": {"limit": LIMIT}}
    async with lab.lswap(models, keys=write_keys(lab), policy=policy) as lswap:
        numbers = count()
        hog, vip, ann = (Crowd(lswap, key, numbers) for key in ("hog", "vip", "ann"))
        over = asyncio.Event()

        async def flood() -> None:
            while not over.is_set():
                await hog.ask()

        async def honest() -> None:
            for _ in range(HONEST):
                await vip.ask()
                await asyncio.gather(ann.ask(), ann.ask())  # a share of three has two

        async with asyncio.TaskGroup() as tasks:
            for _ in range(HOGS):
                tasks.create_task(flood())
            await hog.refused.wait()
            await honest()
            over.set()
        assert vip.statuses == {200: HONEST}
        assert ann.statuses == {200: 2 * HONEST}
        assert {one["code"] for one in hog.errors} == {"queue_full"}
        displaced = [one for one in hog.errors if one.get("reason") == "displaced"]
        assert displaced
        assert "key hog held" in displaced[0]["message"]
        assert hog.statuses[200], "it has its turns, too"
        scraped = (await lswap.client.get("/metrics", headers=bearer("vip"))).text
        told = f'lswap_refusals_total{{key="hog",reason="displaced"}} {len(displaced)}.0'
        assert told in scraped
        assert 'key="vip"' not in scraped
        assert 'key="ann"' not in scraped


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_an_address_has_so_many_requests_open_and_an_operator_sees_and_ends_them(
    lab: Lab,
) -> None:
    """Without keys; all of this machine are one address."""
    models = {"alpha": lab.endless("alpha", args={"parallel": 4})}
    async with (
        lab.lswap(models, limits={"max_in_flight": 2}) as lswap,
        lswap.stream("alpha", max_tokens=1_000_000) as one,
    ):
        await one.read(1)
        async with lswap.stream("alpha", max_tokens=1_000_000) as other:
            await other.read(1)
            for path in (CHAT, "/tokenize", "/api/chat", "/upstream/alpha/completion"):
                refused = await lswap.client.post(path, json=chat_body("alpha"))
                assert refused.status_code == 429, path
                assert int(refused.headers["retry-after"]) >= 1
                assert "limits.max_in_flight" in refused.text
            for path in ("/livez", "/readyz", "/metrics", "/lswap/v1/decisions"):
                assert (await lswap.client.get(path)).status_code == 200, path
            assert model_of(await lswap.state(), "alpha").leases == 2
            opened = (await lswap.client.get("/lswap/v1/requests")).json()["requests"]
            newest = next(each["id"] for each in reversed(opened) if each["model"] == "alpha")
            cancel = f"/lswap/v1/requests/{newest}/cancel"
            assert (await lswap.client.post(cancel)).status_code == 200
            await lswap.until(lambda now: model_of(now, "alpha").leases == 1)
            assert (await lswap.post_chat("alpha", max_tokens=3)).status_code == 200
