"""Models with any name are loaded, asked, listed and looked at, on every way that leads to them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.client import calls
from llamaswap_py.client.address import path_of
from llamaswap_py.client.remote import Remote

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
NAMES = ["..", "org/ünï 模型:q4", "100% a+b?c#d", "n" * 255, "模" * 85, "both", "both:latest"]


async def test_any_name_loads_answers_and_is_reached_by_every_command(lab: Lab) -> None:
    models = {}
    for at, name in enumerate(NAMES):
        models[name] = lab.preset(f"model{at}", size="50MiB")
    folder = lab.folder / "logs"
    async with lab.lswap(models, log={"dir": str(folder)}) as lswap:
        for at, name in enumerate(NAMES):
            said = lab.sentence(f"model{at}")
            assert await lswap.chat(name) == said
            if not name.startswith("both"):
                assert await lswap.chat(f"{name}:latest") == said
            props = await lswap.client.get(f"/upstream/{path_of(name)}/props")
            assert props.json()["model_path"].endswith(f"model{at}.gguf")
            await asyncio.to_thread(_use, lswap.url, name)
            assert (await lswap.model(name)).state == "unloaded"
        for command in ("why", "logs", "load"):
            result = await lab.cli(command, "--url", lswap.url, "--", NAMES[0])
            assert result.code == 0, (command, result.err)
        assert len([*folder.glob("*.log")]) == len(NAMES)
        listed = (await lswap.client.get("/v1/models")).json()["data"]
        assert [one["id"] for one in listed] == NAMES


def _use(url: str, name: str) -> None:
    """Do what commands do with a name."""
    with Remote(url) as remote:
        remote.ask(calls.pin(name, pinned=True))
        remote.ask(calls.pin(name, pinned=False))
        assert remote.ask(calls.decisions(name)).decisions
        with remote.stream(calls.logs(name)) as lines:
            assert list(lines)
        called = f"{name}:latest" if "both" not in name else name
        assert remote.ask(calls.load(called)).model == name
        assert remote.ask(calls.unload(name)).unloaded


async def test_other_names_are_in_lists_and_follow_what_becomes_of_their_model(lab: Lab) -> None:
    request = {"per_name": {"alpha:think": {"set": {"max_tokens": 2}}}}
    models = {
        "alpha": lab.preset("alpha", size="50MiB", aliases=["coder"], request=request),
        "hidden": lab.preset("hidden", size="50MiB", aliases=["hush"], unlisted=True),
    }
    aliases = {"best": {"first": ["alpha", "hidden"]}}
    names = ["alpha", "coder", "alpha:think", "best"]
    async with lab.lswap(models, aliases=aliases) as lswap:
        events: list[dict[str, Any]] = []
        async with lswap.client.stream("GET", "/models/sse") as feed:
            lines = feed.aiter_lines()
            await anext(lines)
            loaded = await lswap.client.post("/models/load", json={"model": "coder"})
            assert loaded.json() == {"success": True}
            async for line in lines:
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
                last = [one["model"] for one in events if one["data"].get("status") == "loaded"]
                if len(last) == len(names):
                    break
        assert last == names
        data = (await lswap.client.get("/models")).json()["data"]
        assert {one["id"]: one["status"]["value"] for one in data} == dict.fromkeys(names, "loaded")
        tags = (await lswap.client.get("/api/tags")).json()["models"]
        assert [one["name"] for one in tags] == names
        assert await lswap.chat("alpha:think") == " ".join(lab.sentence("alpha").split()[:2])
        assert (await lswap.post_chat("hush")).status_code == 200
        shown = (await lswap.client.get("/v1/models/hush")).json()
        assert (shown["id"], shown["root"]) == ("hush", "hidden")
