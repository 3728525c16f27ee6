"""What an operator does and sees: commands, unloading, ttl, pin, limits, drain deadlines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import error_of, instance_of, instances_of, model_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def test_commands(lab: Lab) -> None:
    """load, ps, models, logs, why, unload: for people and as JSON."""
    models = {"alpha": lab.preset("alpha", aliases=["first"]), "beta": lab.preset("beta")}
    async with lab.lswap(models) as lswap:
        at = ("--url", lswap.url)
        loaded = await lab.cli("load", "first", "--json", *at)
        assert loaded.json()["model"] == "alpha"
        assert loaded.json()["state"] == "ready"
        await lswap.chat("alpha")

        ps, ps_json, listed, logs, why = await asyncio.gather(
            lab.cli("ps", *at),
            lab.cli("ps", "--json", *at),
            lab.cli("models", "--json", *at),
            lab.cli("logs", "alpha", "--json", "-n", "5", *at),
            lab.cli("why", "alpha", "--json", *at),
        )
        assert "alpha" in ps.out
        assert "ready" in ps.out
        assert "beta" not in ps.out
        assert "RAM: 200 MiB (declared) – models 100 MiB, kept free 10 MiB" in ps.out
        (instance,) = ps_json.json()["instances"]
        assert (instance["preset"], instance["state"]) == ("alpha", "ready")
        assert [model["id"] for model in listed.json()] == ["alpha", "beta"]
        assert len(logs.out.splitlines()) == 5
        kinds = [decision["kind"] for decision in why.json()]
        assert kinds[:2] == ["load", "ready"]

        unloaded = await lab.cli("unload", "alpha", "--json", *at)
        assert unloaded.json()["unloaded"] is True
        assert not lswap.child_pids()
        again = await lab.cli("unload", "alpha", *at)
        assert (again.code, again.out) == (0, "alpha was not loaded\n")


async def test_commands_that_fail(lab: Lab) -> None:
    bad = lab.preset("bad", extra=["--no-such-flag"])
    async with lab.lswap({"alpha": lab.preset("alpha"), "bad": bad}) as lswap:
        at = ("--url", lswap.url)
        unknown, failed = await asyncio.gather(
            lab.cli("load", "alpa", *at), lab.cli("load", "bad", *at)
        )
        assert unknown.code == 1
        assert "did you mean alpha" in unknown.err
        assert failed.code == 1
        assert "--no-such-flag" in failed.err
        why = await lab.cli("why", "bad", *at)
        assert "failure:" in why.out
        assert "| error: invalid argument: --no-such-flag" in why.out
        await lswap.stop()
        gone = await lab.cli("ps", *at)
        assert gone.code == 3
        assert "lswap up" in gone.err


async def test_logs_follow_until_lswap_stops(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        await lswap.client.post("/lswap/v1/models/alpha/load")
        params = {"follow": "true", "tail": "1"}
        async with lswap.client.stream("GET", "/lswap/v1/logs/alpha", params=params) as follow:
            lines = follow.aiter_lines()
            await anext(lines)
            await lswap.chat("alpha")
            assert await anext(lines)
            await lswap.stop()
            assert [line async for line in lines]


async def test_unload_lets_a_stream_finish(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.endless("alpha")}) as lswap:
        async with lswap.stream("alpha", max_tokens=300) as stream, asyncio.TaskGroup() as tasks:
            await stream.read(1)
            unload = tasks.create_task(lswap.client.post("/lswap/v1/models/alpha/unload"))
            await lswap.says("drain alpha#1: unloaded by command")
            await stream.rest()
            assert (stream.finish, stream.error) == ("length", None)
            assert (await unload).json()["unloaded"] is True
        assert not (await lswap.state()).instances


async def test_a_request_during_an_unload_gets_a_fresh_instance(lab: Lab) -> None:
    """The old one drains, a new one loads beside it: nothing assumes one instance a preset."""
    async with lab.lswap({"alpha": lab.endless("alpha", size="90MiB")}) as lswap:
        async with lswap.stream("alpha") as stream:
            await stream.read(1)
            await lswap.client.post("/lswap/v1/models/alpha/unload", params={"wait": "false"})
            await lswap.until_state("alpha", "draining")
            assert (await lswap.chat("alpha", max_tokens=5)).startswith("alpha says hello")
            states = sorted(one.state for one in instances_of(await lswap.state(), "alpha"))
            assert states == ["draining", "ready"]
            await stream.read(len(stream.words) + 20)
        await lswap.until(lambda now: len(now.instances) == 1)


async def test_force_ends_a_stream_with_an_error_event(lab: Lab) -> None:
    async with (
        lab.lswap({"alpha": lab.endless("alpha")}) as lswap,
        lswap.stream("alpha") as stream,
    ):
        await stream.read(3)
        unloaded = await lab.cli("unload", "alpha", "--force", "--json", "--url", lswap.url)
        assert unloaded.json()["unloaded"] is True
        await stream.rest()
        assert stream.error is not None
        assert stream.error["code"] == "unloaded"
        assert not stream.done
        assert not lswap.child_pids()


async def test_ttl(lab: Lab) -> None:
    """Counted from the end of the last lease: a stream longer than the ttl is not touched."""
    preset = lab.endless("alpha", ttl="100ms")
    async with lab.lswap({"alpha": preset}) as lswap:
        async with lswap.stream("alpha", max_tokens=120) as stream:
            await stream.rest()
            assert stream.error is None
        await lswap.until(lambda now: not now.instances)
        state = await lswap.state()
        stop = next(one for one in await lswap.decisions("alpha") if one.kind == "stop")
        assert "ttl" in stop.reason
        assert (state.loads_total, state.evictions_total) == (1, 0)
        assert (await lswap.chat("alpha", max_tokens=3)).startswith("alpha says")


async def test_pin(lab: Lab) -> None:
    """A pinned model is never evicted. One that does not fit beside it is refused, with figures."""
    models = {"alpha": lab.preset("alpha", pin=True), "beta": lab.preset("beta")}
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        pid = instance_of(await lswap.state(), "alpha").pid
        error = error_of(await lswap.post_chat("beta"), 400)
        assert error["code"] == "model_too_large"
        assert "100 MiB kept loaded" in error["message"]
        assert instance_of(await lswap.state(), "alpha").pid == pid
        await lswap.client.post("/lswap/v1/models/alpha/unload")
        assert await lswap.chat("beta") == lab.sentence("beta")


async def test_the_answer_to_a_pin_names_what_it_makes_impossible(lab: Lab) -> None:
    """Loaded or not, but not what fits beside it."""
    models = {
        "alpha": lab.preset("alpha"),
        "beta": lab.preset("beta"),
        "small": lab.preset("small", size="50MiB"),
    }
    async with lab.lswap(models) as lswap:
        said = "alpha is pinned\nwarning: beside it these can never be loaded: beta - "
        done = await lab.cli("pin", "alpha", "--url", lswap.url)
        assert (done.code, done.out) == (0, f"{said}`lswap unpin alpha`\n")
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        answer = await lswap.client.post("/lswap/v1/models/alpha/pin")
        assert answer.json() == {"model": "alpha", "pinned": True, "impossible": ["beta"]}
        assert error_of(await lswap.post_chat("beta"), 400)["code"] == "model_too_large"
        assert await lswap.chat("small") == lab.sentence("small")
        answer = await lswap.client.post("/lswap/v1/models/alpha/unpin")
        assert answer.json() == {"model": "alpha", "pinned": False, "impossible": []}
        assert await lswap.chat("beta") == lab.sentence("beta")


async def test_keep_always(lab: Lab) -> None:
    """Loaded at the start, pinned, and without a ttl."""
    models = {"alpha": lab.preset("alpha", keep="always"), "beta": lab.preset("beta")}
    async with lab.lswap(models, defaults={"ttl": "200ms"}) as lswap:
        await lswap.until_state("alpha", "ready")
        model = await lswap.model("alpha")
        assert (model.pinned, model.ttl) == (True, None)
        assert error_of(await lswap.post_chat("beta"), 400)["code"] == "model_too_large"


async def test_preload(lab: Lab) -> None:
    """Loaded at the start as far as it fits; what does not is reported, and nothing is evicted."""
    models = {
        "alpha": lab.preset("alpha", preload=True),
        "beta": lab.preset("beta", preload=True),
        "gamma": lab.preset("gamma", size="50MiB", preload=True),
    }
    async with lab.lswap(models) as lswap:
        state = await lswap.until(
            lambda now: [one.state for one in now.instances] == ["ready", "ready"]
        )
        assert {one.preset for one in state.instances} == {"alpha", "gamma"}
        assert state.evictions_total == 0
        kinds = [one.kind for one in await lswap.decisions("beta")]
        assert kinds == ["not preloaded"]
        assert await lswap.chat("beta") == lab.sentence("beta")


async def test_max_loaded(lab: Lab) -> None:
    """Beside memory, not instead of it."""
    models = {name: lab.preset(name, size="10MiB") for name in ("alpha", "beta", "gamma")}
    async with lab.lswap(models, policy={"max_loaded": 2}) as lswap:
        for name in ("alpha", "beta", "gamma"):
            assert await lswap.chat(name) == lab.sentence(name)
        state = await lswap.state()
        assert len(state.instances) == 2
        assert instance_of(state, "gamma").state == "ready"
        assert (state.loads_total, state.evictions_total) == (3, 1)


async def test_the_drain_deadline_ends_a_stream(lab: Lab) -> None:
    """Somebody waits for its memory: after `drain_timeout` the stream ends with an error event."""
    models = {
        "alpha": lab.endless("alpha", drain_timeout="300ms"),
        "beta": lab.preset("beta"),
    }
    policy = {"max_wait": "0s"}
    async with (
        lab.lswap(models, policy=policy) as lswap,
        lswap.stream("alpha") as stream,
        asyncio.TaskGroup() as tasks,
    ):
        await stream.read(3)
        ask = tasks.create_task(lswap.chat("beta"))
        await stream.rest()
        assert stream.error is not None
        assert stream.error["code"] == "unloaded"
        assert not stream.done
        assert await ask == lab.sentence("beta")


async def test_a_drain_deadline_that_waits(lab: Lab) -> None:
    models = {
        "alpha": lab.endless("alpha", drain_timeout="0s", on_drain_deadline="wait"),
        "beta": lab.preset("beta"),
    }
    policy = {"max_wait": "0s"}
    async with lab.lswap(models, policy=policy) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha") as stream:
            await stream.read(3)
            ask = tasks.create_task(lswap.chat("beta"))
            await lswap.until(lambda now: instance_of(now, "alpha").gate == "closed")
            await stream.read(len(stream.words) + 100)
            assert stream.error is None
            assert not ask.done()
        assert await ask == lab.sentence("beta")
        assert (await lswap.state()).loads_total == 2


async def test_an_unanswered_request_is_asked_again_after_a_drain_deadline(lab: Lab) -> None:
    """Without a byte sent it goes back into the queue, and is answered by the next instance."""
    models = {
        "alpha": lab.endless("alpha", drain_timeout="0s"),
        "beta": lab.preset("beta"),
    }
    policy = {"max_wait": "0s"}
    async with lab.lswap(models, policy=policy) as lswap, asyncio.TaskGroup() as tasks:
        await lswap.chat("alpha", max_tokens=1)
        ask = tasks.create_task(lswap.post_chat("alpha", max_tokens=400))
        await lswap.until(lambda now: model_of(now, "alpha").leases == 1)
        assert await lswap.chat("beta") == lab.sentence("beta")
        assert not ask.done()
        answer = await ask
        text = answer.json()["choices"][0]["message"]["content"]
        assert text.startswith((lab.sentence("alpha") + " ") * 30)
        assert instance_of(await lswap.state(), "alpha").epoch > 1


async def test_queue_limits(lab: Lab) -> None:
    """A full queue refuses at once with 429, a long wait ends with 503; both say when to retry."""
    env = {"FAKE_SLOTS": "1", "FAKE_TOKENS": "1000", "FAKE_TOKEN_SECONDS": "0.1"}
    policy = {"queue": {"limit": 2, "timeout": "3s"}}
    busy = {"model": "alpha", "stream": True}
    async with (
        lab.lswap({"alpha": lab.fake("alpha", env=env)}, policy=policy) as lswap,
        lswap.client.stream("POST", "/completion", json=busy),
        asyncio.TaskGroup() as tasks,
    ):
        asks = [tasks.create_task(lswap.post_chat("alpha")) for _ in range(2)]
        await lswap.until(lambda now: model_of(now, "alpha").waiting == 2)
        refused = await lswap.post_chat("alpha")
        error = error_of(refused, 429)
        assert (error["code"], error["position"]) == ("queue_full", 2)
        assert int(refused.headers["retry-after"]) >= 1
        for ask in asks:
            answer = await ask
            assert error_of(answer, 503)["code"] == "queue_timeout"
            assert int(answer.headers["retry-after"]) >= 1
        assert (await lswap.model("alpha")).leases == 1


async def test_autoload_off(lab: Lab) -> None:
    """Requests load nothing; an operator does, and a request may ask for it by name."""
    models = {"alpha": lab.preset("alpha")}
    async with lab.lswap(models, autoload=False) as lswap:
        assert error_of(await lswap.post_chat("alpha"), 400)["code"] == "model_not_loaded"
        assert (await lswap.state()).loads_total == 0
        assert (await lab.cli("load", "alpha", "--url", lswap.url)).code == 0
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.client.post("/lswap/v1/models/alpha/unload")
        url = "/v1/chat/completions?autoload=true"
        answer = await lswap.client.post(
            url, json={"model": "alpha", "messages": [{"role": "user", "content": "x"}]}
        )
        assert answer.status_code == 200


async def test_two_listeners(lab: Lab) -> None:
    path = lab.folder / "lswap.sock"
    listen = ["127.0.0.1:0", f"unix:{path}"]
    async with lab.lswap({"alpha": lab.preset("alpha")}, listen=listen) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        ps = await lab.cli("ps", "--json", "--url", f"unix:{path}")
        assert ps.json()["instances"][0]["preset"] == "alpha"
