"""Presets of a repository: fetched when they are first asked for, from a server like the hub."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.fake_hub import FakeHub, serve_hub
from tests.real.answers import error_of, model_of
from tests.real.harness import poll

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
REPO = "someone/Tiny-GGUF"


def hub_with(lab: Lab) -> FakeHub:
    path = lab.write_model("alpha-padded", lab.sentence("alpha"), pad_bytes=2 << 20)
    return FakeHub({REPO: {"tiny-Q4_K_M.gguf": path.read_bytes(), "README.md": b"hello"}})


def config(lab: Lab, **keys: Any) -> dict[str, Any]:
    beta = lab.preset("beta", size="150MiB")
    return {"alpha": {"hf": f"{REPO}:Q4_K_M", "memory": {"host": "100MiB"}, **keys}, "beta": beta}


async def test_the_first_request_fetches_the_model(lab: Lab) -> None:
    with serve_hub(hub_with(lab)) as hub:
        hub.stall = threading.Event()
        path = lab.write_config(config(lab))
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub"))
        async with server.running() as lswap:
            assert await lswap.chat("beta") == lab.sentence("beta")
            asked = asyncio.create_task(lswap.chat("alpha"))
            state = await lswap.until(lambda now: bool(model_of(now, "alpha").downloaded))
            assert model_of(state, "alpha").state == "downloading"
            assert model_of(state, "beta").state == "ready", "nothing leaves before it is there"
            hub.stall.set()
            assert await asked == lab.sentence("alpha")
            kinds = [one.kind for one in await lswap.decisions("alpha")]
            assert kinds[:3] == ["download", "downloaded", "load"]
            await lswap.stop()
        hub.stall = None
        hub.ranges.clear()
        again = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub"))
        async with again.running() as lswap:
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            await lswap.stop()
        assert hub.ranges == [], "it is kept"


async def test_a_draft_head_never_answers_as_the_model(lab: Lab) -> None:
    """Repositories as publishers lay them out: heads in a folder, shards with a dialect's name."""

    def model(name: str) -> bytes:
        return lab.write_model(name, lab.sentence(name)).read_bytes()

    heads = {f"MTP/mtp-Big-{quant}.gguf": model("head") for quant in ("Q4_0", "Q8_0")}
    files = {"Big-Q4_0.gguf": model("q4"), "Big-Q8_0.gguf": model("q8"), **heads}
    sharded = {"UD/Huge-UD-Q4_K_XL-00001-of-00001.gguf": model("shard"), "mtp-Huge.gguf": b"GGUF"}
    repos = {"me/Big-GGUF": files, "me/Huge-GGUF": sharded}
    named = {"plain": "me/Big-GGUF", "q4": "me/Big-GGUF:Q4_0", "xl": "me/Huge-GGUF:q4_k_xl"}
    with serve_hub(FakeHub(repos)) as hub:
        presets = {id: {"hf": hf, "memory": {"host": "50MiB"}} for id, hf in named.items()}
        server = lab.server(
            lab.write_config(presets), HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub")
        )
        async with server.running() as lswap:
            assert await lswap.chat("q4") == lab.sentence("q4")
            assert await lswap.chat("plain") == lab.sentence("q8")
            assert await lswap.chat("xl") == lab.sentence("shard")
            await lswap.stop()
        assert not [name for name, _ in hub.ranges if "mtp" in name]


async def test_a_download_that_fails_says_why_and_is_tried_again(lab: Lab) -> None:
    with serve_hub(hub_with(lab)) as hub:
        hub.status = 500
        path = lab.write_config(config(lab))
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub"))
        async with server.running() as lswap:
            error = error_of(await lswap.post_chat("alpha"), 503)
            assert error["code"] == "model_failed"
            assert REPO in error["message"]
            assert (await lswap.model("alpha")).state == "failed"
            hub.status = 0

            async def answered() -> bool:
                return (await lswap.post_chat("alpha")).status_code == 200

            await poll(answered, pause=0.2)
            await lswap.stop()


async def test_stopping_ends_a_download(lab: Lab) -> None:
    with serve_hub(hub_with(lab)) as hub:
        hub.stall = threading.Event()
        path = lab.write_config(config(lab))
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub"))
        async with server.running() as lswap:
            asked = asyncio.create_task(lswap.post_chat("alpha"))
            await lswap.until(lambda now: bool(model_of(now, "alpha").downloaded))
            await lswap.stop()
            assert (await asked).status_code == 503


@pytest.mark.parametrize("how", ["the file", "DELETE"])
async def test_a_model_that_goes_while_it_is_fetched_harms_nobody(lab: Lab, how: str) -> None:
    with serve_hub(hub_with(lab)) as hub:
        hub.stall = threading.Event()
        path = lab.write_config(config(lab))
        cache = lab.folder / "hub"
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(cache))
        async with server.running() as lswap:
            asked = asyncio.create_task(lswap.post_chat("alpha"))
            await lswap.until(lambda now: bool(model_of(now, "alpha").downloaded))
            if how == "DELETE":
                removed = await lswap.client.delete("/models", params={"model": "alpha"})
                assert removed.status_code == 200, removed.text
            else:
                lab.write_config({"beta": lab.preset("beta", size="150MiB")})
                assert (await lswap.client.post("/lswap/v1/reload")).status_code == 200
            assert (await asked).status_code == 404
            hub.stall.set()

            async def fetched_or_ended() -> bool:
                return not lswap.descendants()

            await poll(fetched_or_ended)
            assert await lswap.chat("beta") == lab.sentence("beta")
            assert [one.id for one in (await lswap.state()).models] == ["beta"]
            if how == "DELETE":
                assert not list(cache.rglob("*.gguf"))
            await lswap.stop()
