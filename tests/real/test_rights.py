"""What an inference key may do to others: nothing without a right (docs/security.md has the table).

Clients of Ollama send `keep_alive` with every request, so it is no error without the right.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llamaswap_py.api.routes import look_up, pick
from llamaswap_py.config.api_keys import RIGHTS, hash_secret
from tests.real.answers import chat_body, error_of
from tests.real.harness import poll
from tests.real.test_api_keys import ADMIN
from tests.unit.test_docs_security import rights_of_routes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
SAYS: Any = {"model": "alpha", "prompt": "hi", "stream": False}


def as_key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def write_keys(folder: Path, **keys: dict[str, Any]) -> dict[str, Any]:
    """Write a key file with an admin key `boss` and these, whose secrets are their names."""
    every = {"boss": {"kind": "admin"}, **keys}
    entries = [
        {"name": name, "hash": hash_secret(name.encode()), **of} for name, of in every.items()
    ]
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": entries}))
    path.chmod(0o600)
    return {"file": str(path)}


async def instances(lswap: Lswap) -> dict[str, Any]:
    answer = await lswap.client.get("/lswap/v1/state", headers=ADMIN)
    return {one["preset"]: one for one in answer.json()["instances"]}


async def test_keep_alive_of_a_key_without_the_right_changes_nothing_for_others(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, bob={"rights": ["ttl"]})
    embeds = lab.preset(
        "vectors", size="50MiB", args={"embeddings": True, "pooling": "mean"}, ttl="1h"
    )
    models = {"alpha": lab.preset("alpha", ttl="1h"), "vectors": embeds}
    async with lab.lswap(models, keys=keys) as lswap:
        for keep in ("30m", -1, 0, None):
            for path, body in (
                ("/api/generate", {"model": "alpha", "prompt": "hi", "stream": False}),
                ("/api/chat", {"stream": False, **chat_body("alpha")}),
                ("/api/embed", {"model": "vectors", "input": "hi"}),
                ("/api/embeddings", {"model": "vectors", "prompt": "hi"}),
            ):
                asked = body if keep is None else {**body, "keep_alive": keep}
                answer = await lswap.client.post(path, json=asked, headers=as_key("ann"))
                assert answer.status_code == 200, answer.text
                assert {one["ttl"] for one in (await instances(lswap)).values()} == {3600}
        assert sum("keep_alive in requests of the key 'ann'" in line for line in lswap.log) == 1
        # To unload a model is what such a request is for: that is refused.
        for path in ("/api/generate", "/api/chat"):
            body = {"model": "alpha", "keep_alive": 0}
            answer = await lswap.client.post(path, json=body, headers=as_key("ann"))
            assert answer.status_code == 403
            assert "the right 'ttl'" in answer.json()["error"]
        body = {"model": "vectors", "input": [], "keep_alive": 0}
        answer = await lswap.client.post("/api/embed", json=body, headers=as_key("ann"))
        assert answer.status_code == 403
        assert set(await instances(lswap)) == {"alpha", "vectors"}
        # With the right it is as without keys.
        body = {**SAYS, "keep_alive": "2h"}
        await lswap.client.post("/api/generate", json=body, headers=as_key("bob"))
        assert (await instances(lswap))["alpha"]["ttl"] == 7200
        body = {"model": "alpha", "keep_alive": 0}
        answer = await lswap.client.post("/api/generate", json=body, headers=as_key("bob"))
        assert answer.json()["done_reason"] == "unload"

        async def gone() -> bool:
            return "alpha" not in await instances(lswap)

        await poll(gone)


async def test_each_right_opens_what_it_names_and_nothing_else(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, **{right: {"rights": [right]} for right in RIGHTS})
    slots = {"slot-save-path": str(lab.folder)}
    async with lab.lswap({"alpha": lab.preset("alpha", args=slots)}, keys=keys) as lswap:
        asks: dict[str, list[tuple[str, Any]]] = {
            "pin": [("/lswap/v1/models/alpha/pin", {}), ("/lswap/v1/models/alpha/unpin", {})],
            "slots": [
                ("/slots/0?action=erase", {"model": "alpha"}),
                ("/slots/0?action=save", {"model": "alpha", "filename": "mine"}),
                ("/upstream/alpha/slots/0?action=erase", {}),
                ("/upstream/alpha/%73lots/0?action=restore", {"filename": "mine"}),
            ],
            "ttl": [("/api/generate", {"model": "alpha", "keep_alive": 0})],
            "unload": [
                ("/models/unload", {"model": "alpha"}),
                ("/lswap/v1/models/alpha/unload", {}),
                ("/api/generate", {"model": "alpha", "keep_alive": 0}),
            ],
        }
        for right, routes in asks.items():
            for path, body in routes:
                opens = {right, "boss"} | ({"ttl", "unload"} if "api" in path else set())
                for name in ("ann", *RIGHTS, "boss"):
                    await lswap.client.post("/lswap/v1/models/alpha/load", headers=ADMIN)
                    said = await lswap.client.post(path, json=body, headers=as_key(name))
                    assert (said.status_code == 403) == (name not in opens), (path, name, said.text)
        # Even so, nobody but an admin ends the requests of others.
        path = "/lswap/v1/models/alpha/unload?force=true"
        assert (await lswap.client.post(path, headers=as_key("unload"))).status_code == 403


async def test_the_file_may_give_every_key_a_right(lab: Lab) -> None:
    keys = {**write_keys(lab.folder, ann={}), "rights": ["ttl"]}
    async with lab.lswap({"alpha": lab.preset("alpha", ttl="1h")}, keys=keys) as lswap:
        body = {**SAYS, "keep_alive": -1}
        await lswap.client.post("/api/generate", json=body, headers=as_key("ann"))
        assert (await instances(lswap))["alpha"]["ttl"] is None


async def test_loading_by_asking_is_a_request_like_any_other(lab: Lab) -> None:
    """Without a right a load waits its turn, evicts nothing pinned, and does not end a back-off."""
    models = {
        "alpha": lab.endless("alpha", size="100MiB", pin=True),
        "beta": lab.preset("beta", size="150MiB"),
        "broken": lab.fake("broken", size="10MiB", env={"FAKE_CRASH": "loading:exit:1"}),
        "secret": lab.preset("secret", size="10MiB"),
    }
    keys = write_keys(lab.folder, ann={"models": ["alpha", "beta", "broken"]})
    memory = {"devices": {"host": "200MiB"}, "margin": 0}
    async with lab.lswap(models, keys=keys, memory=memory) as lswap:

        async def ask(path: str, **body: Any) -> Any:
            return await lswap.client.post(path, json=body, headers=as_key("ann"))

        error = error_of(await ask("/models/load", model="secret"), 403)
        assert error["type"] == "permission_error"
        assert (await ask("/models/load", model="alpha")).json() == {"success": True}

        async def loaded() -> bool:
            states = {name: one["state"] for name, one in (await instances(lswap)).items()}
            return states.get("alpha") == "ready"

        await poll(loaded)
        # A model that failed is not tried again at once, however often one asks.
        while (await ask("/completion", model="broken")).status_code != 503:
            pass
        for _ in range(5):
            error_of(await ask("/models/load", model="broken"), 503)
            assert (await ask("/api/generate", model="broken")).status_code == 503
        state = (await lswap.client.get("/lswap/v1/state", headers=ADMIN)).json()
        loads = {one["id"]: one["loads"] for one in state["models"]}
        failed = [
            one
            for one in (await lswap.client.get("/lswap/v1/decisions", headers=ADMIN)).json()[
                "decisions"
            ]
            if (one["preset"], one["kind"]) == ("broken", "load")
        ]
        assert len(failed) <= 2, (loads, failed)
        # What is pinned stays; of many wishes for a model one waits.
        for _ in range(20):
            await ask("/models/load", model="beta")
        assert set(await instances(lswap)) == {"alpha"}


async def test_each_route_takes_what_the_table_says(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, **{right: {"rights": [right]} for right in RIGHTS})
    async with lab.lswap({"alpha": lab.preset("alpha")}, keys=keys) as lswap:
        for (method, path), takes in rights_of_routes().items():
            asked = path.replace("{id}", "alpha")
            methods, _ = look_up(asked)
            assert methods is not None
            assert pick(methods, method) is not None

            async def ask(key: str | None, method: str = method, asked: str = asked) -> int:
                headers = {} if key is None else as_key(key)
                async with lswap.client.stream(method, asked, headers=headers) as answer:
                    return answer.status_code

            none, nobody, ann, *others = await asyncio.gather(
                *map(ask, (None, "nobody", "ann", *RIGHTS))
            )
            assert (none == 401, nobody == 401) == (takes != "", takes != ""), asked
            refuses = asked in ("/cors-proxy", "/tools")
            assert (ann == 403) == (takes not in ("", "key") or refuses), asked
            for right, status in zip(RIGHTS, others, strict=True):
                may = takes in ("", "key", right)
                assert (status == 403) == (not may or refuses), (asked, right)
