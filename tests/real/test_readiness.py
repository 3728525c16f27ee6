"""How lswap knows that a child serves: by its own words, in every dialect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import instance_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

STATE_LINE = "cmd_child_to_router:state"


async def test_child_mode(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        instance = instance_of(await lswap.state(), "alpha")
        assert (instance.state, instance.slots, instance.n_ctx) == ("ready", 2, 256)
        assert instance.endpoint is not None
        assert instance.endpoint.startswith("unix:")


async def test_the_real_engine_without_child_mode(lab: Lab) -> None:
    """The older way: a log line says that it listens; SIGTERM ends it."""
    engine = lab.old_engine()
    async with lab.lswap({"alpha": lab.preset("alpha")}, engine=engine) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert "listening on unix:" in await lswap.logs("alpha")
        assert STATE_LINE not in await lswap.logs("alpha")
        assert instance_of(await lswap.state(), "alpha").slots == 2


async def test_the_real_engine_without_unix_sockets(lab: Lab) -> None:
    """The child chooses a port by itself, and says which."""
    engine = lab.old_engine("[.]sock")
    models = {name: lab.preset(name, size="90MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models, engine=engine) as lswap:
        answers = await asyncio.gather(*(lswap.chat(name) for name in models))
        assert answers == [lab.sentence(name) for name in models]
        endpoints = {one.endpoint or "" for one in (await lswap.state()).instances}
        assert len(endpoints) == 2
        assert all(one.startswith("127.0.0.1:") for one in endpoints)


async def test_plain_text_logs_of_an_older_engine(lab: Lab) -> None:
    """An engine that knows neither child mode nor JSON logs."""
    engine = lab.old_engine("log-jsonl", "[.]sock")
    async with lab.lswap({"alpha": lab.preset("alpha")}, engine=engine) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert "--log-jsonl" not in (await lswap.model("alpha")).args


@pytest.mark.parametrize("dialect", ["old", "ancient"])
async def test_older_formats_are_ready_when_they_say_so(lab: Lab, dialect: str) -> None:
    """`HTTP server is listening, hostname` of ancient ones comes before loading: not readiness."""
    gate = lab.folder / "gate"
    env = {"FAKE_FORMAT": dialect, "FAKE_LOAD_GATE": str(gate)}
    preset = lab.fake("alpha", env=env) | {"engine": lab.fake_engine(child_mode=False)}
    async with lab.lswap({"alpha": preset}) as lswap, asyncio.TaskGroup() as tasks:
        ask = tasks.create_task(lswap.fake_answer("alpha"))
        early = "hostname: 127.0.0.1" if dialect == "ancient" else "initializing"
        await lswap.until_logged("alpha", early)
        assert (await lswap.model("alpha")).state == "loading"
        assert not ask.done()
        gate.touch()
        assert await ask == "t0t1t2"
        assert "main: server is listening on" in await lswap.logs("alpha")


async def test_a_load_without_a_sign_of_life_is_given_up(lab: Lab) -> None:
    preset = lab.fake("alpha", env={"FAKE_HANG": "1"}, load_stall="1s")
    async with lab.lswap({"alpha": preset}) as lswap:
        answer = await lswap.client.post("/completion", json={"model": "alpha"})
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert (error["code"], error["failure"]) == ("model_failed", "timeout")
        assert "no sign of progress for 1 s" in error["message"]
        await lswap.until(lambda now: not now.instances)


async def test_what_is_shown_is_what_the_child_says(lab: Lab) -> None:
    """The engine caps the context to what the model was trained with; before the load nobody knows.

    In lists, in the state, in Ollama's, and in the log.
    """
    path = lab.write_model("alpha-4096", lab.sentence("alpha"), n_ctx_train=4096)
    args = {"ctx-size": 16384, "parallel": 1}
    models = {"alpha": {"model": str(path), "memory": {"host": "100MiB"}, "args": args}}
    async with lab.lswap(models) as lswap:
        assert (await lswap.model("alpha")).context_per_request == 16384
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        props = (await lswap.client.get("/props", params={"model": "alpha"})).json()
        assert props["default_generation_settings"]["n_ctx"] == 4096
        assert (await lswap.model("alpha")).context_per_request == 4096
        (listed,) = (await lswap.client.get("/v1/models")).json()["data"]
        assert listed["meta"]["n_ctx"] == 4096
        assert listed["architecture"]["input_modalities"] == ["text"]
        (one,) = (await lswap.client.get("/api/ps")).json()["models"]
        assert one["context_length"] == 4096
        shown = (await lswap.client.post("/api/show", json={"model": "alpha"})).json()
        assert "num_ctx" in shown["parameters"]
        assert "4096" in shown["parameters"]
        instance = instance_of(await lswap.state(), "alpha")
        assert (instance.slots, instance.n_ctx, instance.inputs) == (1, 4096, ("text",))
        await lswap.says("alpha#1: llama-server gives 4096 tokens of context per request, of 16384")
        models_listed = await lab.cli("models", "--url", lswap.url)
        assert "4,096" in models_listed.out
        assert "16,384" not in models_listed.out
