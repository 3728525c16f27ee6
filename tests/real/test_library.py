"""Models of a repository come and go while lswap serves: llama.cpp's routes, and Ollama's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from httpx_sse import aconnect_sse

from tests.fakes.fake_hub import serve_hub
from tests.real.answers import error_of
from tests.real.test_downloads import REPO, hub_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
NAME = f"{REPO}:Q4_K_M"


@asynccontextmanager
async def serving(lab: Lab) -> AsyncIterator[Lswap]:
    with serve_hub(hub_with(lab)) as hub:
        path = lab.write_config({"beta": lab.preset("beta")}, memory={"devices": {"host": "2GiB"}})
        path.write_text(f"# mine\n{path.read_text()}")
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub"))
        async with server.running() as lswap:
            yield lswap
            await lswap.stop()


async def _ids(lswap: Lswap) -> dict[str, str]:
    models = (await lswap.client.get("/models")).json()["data"]
    return {one["id"]: one["status"]["value"] for one in models}


async def test_one_is_added_fetched_used_and_removed(lab: Lab) -> None:
    async with serving(lab) as lswap:
        async with asyncio.timeout(60):
            async with aconnect_sse(lswap.client, "GET", "/models/sse") as source:
                events = source.aiter_sse()
                added = await lswap.client.post("/models", json={"model": NAME})
                assert added.json() == {"success": True}, added.text
                kinds = set()
                while "finished" not in kinds:
                    told = (await anext(events)).json()
                    if told["model"] == NAME and told["event"].startswith("download"):
                        kinds.add(told["event"].removeprefix("download_"))
        assert set(await _ids(lswap)) == {"beta", NAME}
        assert lswap.config.read_text().startswith("# mine\n")
        again = await lswap.client.post("/models", json={"model": NAME})
        assert error_of(again, 400)["message"] == f"model '{NAME}' already exists"
        assert await lswap.chat(NAME) == lab.sentence("alpha")
        files = list((lab.folder / "hub").rglob("*.gguf"))
        assert files
        removed = await lswap.client.delete("/models", params={"model": NAME})
        assert removed.json() == {"success": True}, removed.text
        assert set(await _ids(lswap)) == {"beta"}
        assert not any(file.exists() for file in files)
        assert NAME not in lswap.config.read_text()
        gone = await lswap.client.delete("/models", params={"model": NAME})
        assert error_of(gone, 400)["message"] == f"model '{NAME}' not found"


async def test_one_may_be_removed_while_it_is_fetched(lab: Lab) -> None:
    async with serving(lab) as lswap:
        await lswap.client.post("/models", json={"model": NAME})
        removed = await lswap.client.delete("/models", params={"model": NAME})
        assert removed.json() == {"success": True}, removed.text
        assert set(await _ids(lswap)) == {"beta"}
        await lswap.until_no_process_is_left()
        assert await lswap.chat("beta") == lab.sentence("beta")


async def test_ollama_s_delete(lab: Lab) -> None:
    async with serving(lab) as lswap:
        await lswap.client.post("/models", json={"model": NAME})
        answer = await lswap.client.request("DELETE", "/api/delete", json={"model": NAME})
        assert (answer.status_code, answer.content) == (200, b"")
        assert set(await _ids(lswap)) == {"beta"}
        kept = await lswap.client.request("DELETE", "/api/delete", json={"model": "beta"})
        assert kept.status_code == 400
        assert "does not delete its files" in kept.json()["error"]
        unknown = await lswap.client.request("DELETE", "/api/delete", json={"model": "gamma"})
        assert unknown.status_code == 404


async def test_what_cannot_be_had_is_not_added(lab: Lab) -> None:
    async with serving(lab) as lswap:
        before = lswap.config.read_text()
        for name in ("someone/Nothing-GGUF", f"{REPO}:Q9_Z", "no slash", "a/b/c", "", 3):
            answer = await lswap.client.post("/models", json={"model": name})
            assert error_of(answer, 400)["message"], name
        assert error_of(await lswap.client.post("/models", content=b"{"), 400)["code"] == 400
        for query in ({}, {"model": "beta"}):
            assert (await lswap.client.delete("/models", params=query)).status_code == 400
        assert lswap.config.read_text() == before
        assert set(await _ids(lswap)) == {"beta"}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("hf.co/a/b-GGUF:Q8_0", "lswap pull a/b-GGUF:Q8_0"),
        ("qwen3:8b", "lswap pull Qwen/Qwen3-8B-GGUF"),
    ],
)
async def test_ollama_s_pull_of_another_names_the_command(
    lab: Lab, name: str, command: str
) -> None:
    async with serving(lab) as lswap:
        answer = await lswap.client.post("/api/pull", json={"model": name})
        assert answer.status_code == 501
        assert command in answer.json()["error"]


async def test_the_list_reads_a_changed_file_when_asked(lab: Lab) -> None:
    async with serving(lab) as lswap:
        lab.write_config({"beta": lab.preset("beta"), "alpha": lab.preset("alpha")})
        answer = await lswap.client.get("/models", params={"reload": "1"})
        assert {one["id"] for one in answer.json()["data"]} == {"beta", "alpha"}


async def _fetched(lswap: Lswap, name: str) -> None:
    await lswap.client.post("/models", json={"model": name})
    await lswap.until_state(name, "unloaded", "ready")


async def test_files_that_another_model_uses_stay(lab: Lab) -> None:
    async with serving(lab) as lswap:
        await _fetched(lswap, NAME)
        await _fetched(lswap, REPO)  # without a tag it means the same file
        removed = await lswap.client.delete("/models", params={"model": NAME})
        assert removed.status_code == 200
        assert await lswap.chat(REPO) == lab.sentence("alpha")
        assert any(file.exists() for file in (lab.folder / "hub").rglob("*.gguf"))


async def test_the_last_one_goes_with_its_projector_and_the_file_serves_on(lab: Lab) -> None:
    hub = hub_with(lab)
    files = dict(hub.repos[REPO])
    hub.repos = {REPO: {**files, "mmproj-F16.gguf": b"GGUF" + b"p" * 500}}
    cache = lab.folder / "hub"
    with serve_hub(hub):
        path = lab.write_config({NAME: {"hf": NAME, "memory": {"host": "100MiB"}}})
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(cache))
        async with server.running() as lswap:
            await lswap.post_chat(NAME)  # which fetches both; the projector is none
            assert len(list(cache.rglob("*.gguf"))) == 2
            removed = await lswap.client.delete("/models", params={"model": NAME})
            assert removed.json() == {"success": True}, removed.text
            assert await _ids(lswap) == {}
            assert [one for one in cache.rglob("*") if one.is_file()] == []
            added = await lswap.client.post("/models", json={"model": NAME})
            assert added.json() == {"success": True}, added.text
            assert set(await _ids(lswap)) == {NAME}
            await lswap.client.delete("/models", params={"model": NAME})
            await lswap.stop()
        async with lab.server(path).running() as lswap:
            assert await _ids(lswap) == {}, "it starts with an empty file, too"
            await lswap.stop()


async def test_one_that_others_name_stays_with_its_file(lab: Lab) -> None:
    with serve_hub(hub_with(lab)) as hub:
        alpha = {"hf": NAME, "memory": {"host": "100MiB"}}
        path = lab.write_config({"beta": lab.preset("beta"), "a": alpha}, default_model="a")
        server = lab.server(path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(lab.folder / "hub"))
        before = path.read_text()
        async with server.running() as lswap:
            refused = await lswap.client.delete("/models", params={"model": "a"})
            assert "default_model" in error_of(refused, 400)["message"]
            assert path.read_text() == before
            assert set(await _ids(lswap)) == {"beta", "a"}
            await lswap.stop()


async def test_a_refused_one_is_not_in_the_file(lab: Lab) -> None:
    """The file was wrong before, in another place."""
    async with serving(lab) as lswap:
        with lswap.config.open("a") as file:
            file.write("nonsense: 1\n")
        before = lswap.config.read_text()
        answer = await lswap.client.post("/models", json={"model": NAME})
        assert "nonsense" in error_of(answer, 400)["message"]
        assert lswap.config.read_text() == before


async def test_many_at_once(lab: Lab) -> None:
    async with serving(lab) as lswap:
        names = (NAME, REPO, f"hf.co/{REPO}")
        answers = await asyncio.gather(
            *(lswap.client.post("/models", json={"model": name}) for name in names for _ in (1, 2))
        )
        assert [one.status_code for one in answers].count(200) == len(names)
        assert set(await _ids(lswap)) == {"beta", *names}
