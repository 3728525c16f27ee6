"""Memory with real children: strangers, the margin, variants, groups, sleep, and who may wait."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from llamaswap_py.units import GIB, MIB
from tests.real.answers import error_of, instances_of, model_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

_STRANGER = "import sys; held = bytearray(b'x') * int(sys.argv[1]); print('held', flush=True); "
_STRANGER += "sys.stdin.read()"


@asynccontextmanager
async def stranger(size: int) -> AsyncIterator[None]:
    """A program that holds `size` bytes of memory while the block runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _STRANGER, str(size)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"held\n"
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def test_an_idle_model_yields_to_a_stranger(lab: Lab) -> None:
    """The host is measured: 2 GiB are left to lswap, and somebody else takes most of them."""
    left = 2 * GIB
    room = psutil.virtual_memory().available
    if room < 3 * GIB:
        pytest.skip("missing: 3 GiB of free memory")
    memory = {"devices": "auto", "margin": f"{(room - left) // MIB}MiB"}
    models = {"alpha": lab.preset("alpha", size="1GiB")}
    async with lab.lswap(models, memory=memory) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        async with stranger(left - 512 * MIB):
            await lswap.until(lambda now: not now.instances)
            (stopped,) = [one for one in await lswap.decisions("alpha") if one.kind == "stop"]
            assert "other programs took memory" in stopped.reason
        assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_what_is_promised_never_crosses_the_margin(lab: Lab) -> None:
    """Five models of 60 MiB, room for three: sampled at every moment that anything changes."""
    models = {name: lab.preset(name, size="60MiB") for name in ("a", "b", "c", "d", "e")}
    async with lab.lswap(models) as lswap, asyncio.TaskGroup() as tasks:
        asks = [tasks.create_task(lswap.chat(name)) for name in [*models] * 3]
        while not all(ask.done() for ask in asks):
            (host,) = (await lswap.state()).devices
            assert host.used <= host.total - host.margin
        assert [ask.result() for ask in asks] == [lab.sentence(name) for name in [*models] * 3]


async def test_a_lean_variant_where_the_full_one_does_not_fit(lab: Lab) -> None:
    full = {"name": "full", "memory": {"host": "150MiB"}}
    lean = {"name": "lean", "memory": {"host": "80MiB"}, "args": {"ctx-size": 256}}
    models = {
        "alpha": lab.preset("alpha", size="100MiB", pin=True),
        "beta": lab.preset("beta", variants=[full, lean], args={"ctx-size": 512}),
    }
    async with lab.lswap(models) as lswap:
        await lswap.chat("alpha")
        assert await lswap.chat("beta") == lab.sentence("beta")
        state = await lswap.state()
        assert model_of(state, "beta").footprint == {"host": 80 * MIB}
        (beta,) = instances_of(state, "beta")
        assert beta.n_ctx == 256


async def test_a_group_is_exclusive(lab: Lab) -> None:
    models = {name: lab.preset(name, size="10MiB") for name in ("alpha", "beta")}
    groups = {"big": {"exclusive": ["alpha", "beta"]}}
    async with lab.lswap(models, groups=groups) as lswap:
        for name in ("alpha", "beta", "alpha"):
            assert await lswap.chat(name) == lab.sentence(name)
            (only,) = (await lswap.state()).instances
            assert only.preset == name


async def test_a_sleeping_model_makes_room_and_wakes(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha", size="150MiB", sleep="1s"),
        "beta": lab.preset("beta", size="100MiB"),
    }
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        (before,) = lswap.child_pids()
        await lswap.until_state("alpha", "sleeping")
        (host,) = (await lswap.state()).devices
        assert host.used == 64 * MIB
        assert await lswap.chat("beta") == lab.sentence("beta")
        assert before in lswap.child_pids(), "it keeps its process"
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert before in lswap.child_pids()
        assert model_of(await lswap.state(), "alpha").loads == 1


async def test_when_full(lab: Lab) -> None:
    """Both fill the memory; a stream holds alpha."""
    models = {
        "alpha": lab.endless("alpha", size="150MiB"),
        "beta": lab.preset("beta", size="150MiB", when_full="refuse"),
    }
    async with lab.lswap(models) as lswap, lswap.stream("alpha", max_tokens=100_000) as stream:
        await stream.read(3)
        error = error_of(await lswap.post_chat("beta"), 503)
        assert error["code"] == "memory_full"
        assert "needs 150 MiB" in error["message"]
        substitute = {"x-lswap-when-full": "substitute: loaded"}
        body = {"model": "beta", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = await lswap.client.post("/v1/chat/completions", json=body, headers=substitute)
        assert answer.headers["x-lswap-model"] == "alpha"
        assert answer.json()["choices"][0]["message"]["content"].startswith("alpha says")


async def test_nested_use(lab: Lab) -> None:
    """A client holds a stream on alpha and calls beta under it, which needs alpha's memory."""
    models = {
        "alpha": lab.endless("alpha", size="150MiB", drain_timeout="1s"),
        "beta": lab.preset("beta", size="150MiB"),
    }
    async with lab.lswap(models) as lswap:
        async with lswap.stream("alpha", max_tokens=100_000) as outer:
            await outer.read(3)
            under = {"x-lswap-parent": outer.response.headers["x-request-id"]}
            body = {"model": "beta", "messages": [{"role": "user", "content": "hi"}]}
            inner = await lswap.client.post("/v1/chat/completions", json=body, headers=under)
            error = error_of(inner, 409)
            assert error["code"] == "would_deadlock"
            assert "alpha" in error["message"]
            why = [f"{one.kind}: {one.reason}" for one in await lswap.decisions("beta")]
            assert any("refused" in line and "which would wait for itself" in line for line in why)
            # Without the header nobody can know: the drain deadline ends the stream.
            assert await lswap.chat("beta") == lab.sentence("beta")
            await outer.rest()
            assert outer.error is not None
            assert outer.error["code"] == "unloaded"
        why = [f"{one.kind}: {one.reason}" for one in await lswap.decisions("alpha")]
        assert any("no new requests until beta has had its turn" in line for line in why)
        assert any("revoked: drain deadline" in line for line in why)


async def test_a_nested_call_of_the_same_model(lab: Lab) -> None:
    """An agent calls its own model again from within its stream: one slot, then two."""
    models = {
        "alpha": lab.endless("alpha", concurrency=1),
        "beta": lab.endless("beta", size="40MiB"),
    }
    async with lab.lswap(models) as lswap:
        for name, status in (("alpha", 409), ("beta", 200)):
            async with lswap.stream(name, max_tokens=100_000) as outer:
                await outer.read(3)
                under = {"x-lswap-parent": outer.response.headers["x-request-id"]}
                message = {"role": "user", "content": "hi"}
                body = {"model": name, "messages": [message], "max_tokens": 3}
                inner = await lswap.client.post("/v1/chat/completions", json=body, headers=under)
                assert inner.status_code == status, inner.text


async def test_what_was_learned_of_the_requests_is_there_after_a_restart(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", size="50MiB"), "beta": lab.preset("beta", size="50MiB")}
    async with lab.lswap(models) as lswap:
        for name in ("alpha", "beta", "alpha"):
            await lswap.chat(name)
    (kept,) = (lab.folder / "lswap" / "traffic").glob("traffic-*.json")
    before = json.loads(kept.read_text())["record"]
    assert before["followers"]["alpha"]["beta"] > 0
    async with lab.lswap(models) as lswap:
        await lswap.chat("beta")
    after = json.loads(kept.read_text())["record"]
    assert after["followers"]["alpha"]["beta"] == before["followers"]["alpha"]["beta"]
    assert after["rates"]["beta"][1] > before["rates"]["beta"][1]
