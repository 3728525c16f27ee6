"""Files in the page cache before their load: of a model that waits, and of one that is kept."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.devices.page_cache import cached_bytes
from tests.real.answers import PATIENCE
from tests.real.harness import poll

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
MIB = 1 << 20
SIZE = 64 * MIB


def _resident(path: str) -> int:
    """Return how many bytes of a file are in the page cache."""
    with open(path, "rb") as file:
        found = cached_bytes(file.fileno(), 0, SIZE * 2)
    if found is None:
        pytest.skip("missing: cachestat(2) (Linux 6.5 or later)")
    return found


def _drop(path: str) -> None:
    """Drop a file's pages: written back first, since only clean ones can go."""
    if sys.platform != "linux":
        pytest.skip("missing: Linux")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = _resident(path)
    if left > MIB:
        pytest.skip("missing: a file system whose pages can be dropped (no tmpfs)")


def _cold(lab: Lab, name: str, **keys: Any) -> Preset:
    """Return a preset of 64 MiB whose file is not in the page cache."""
    preset = lab.heavy(name, mib=SIZE // MIB, **keys)
    _drop(preset["model"])
    return preset


async def _until_resident(path: str, least: int = SIZE) -> None:
    async def enough() -> bool:
        return _resident(path) >= least

    await poll(enough)


async def _ask(lswap: Lswap, name: str) -> str:
    return await lswap.chat(name)


async def test_the_next_model_is_read_while_another_drains(lab: Lab) -> None:
    beta = _cold(lab, "beta")
    async with lab.lswap({"alpha": lab.endless("alpha"), "beta": beta}) as lswap:
        async with asyncio.TaskGroup() as tasks:
            async with lswap.stream("alpha") as stream:
                await stream.read(1)
                asked = tasks.create_task(_ask(lswap, "beta"))
                await _until_resident(beta["model"])
                waits = await lswap.until(
                    lambda now: any(one.id == "beta" and one.read_ahead for one in now.models)
                )
                ahead = next(one.read_ahead for one in waits.models if one.id == "beta")
                assert ahead is not None
                assert ahead.size == os.stat(beta["model"]).st_size
                assert not asked.done()
            assert await asked == lab.sentence("beta")
        decisions = await lswap.decisions("beta")
        told = [one.reason for one in decisions if one.kind == "read ahead"]
        assert len(told) == 1
        assert "were read in" in told[0]
        after = await lswap.state()
        assert after.read_ahead_bytes_total >= SIZE - MIB
        assert not any(one.read_ahead for one in after.models)
        metrics = (await lswap.client.get("/metrics")).text
        counted = re.search(r"^lswap_read_ahead_bytes_total (\S+)$", metrics, re.MULTILINE)
        assert counted is not None
        assert float(counted[1]) == after.read_ahead_bytes_total


async def test_it_is_over_once_its_client_has_left(lab: Lab) -> None:
    beta = _cold(lab, "beta")
    models = {"alpha": lab.endless("alpha"), "beta": beta}
    async with lab.lswap(models) as lswap, lswap.stream("alpha") as stream:
        await stream.read(1)
        asked = asyncio.create_task(_ask(lswap, "beta"))
        await _until_resident(beta["model"], MIB)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked
        left = await lswap.until(lambda now: all(one.waiting == 0 for one in now.models))
        assert not any(one.read_ahead for one in left.models)
        await lswap.says("read ahead beta: ")


async def test_no_more_is_read_than_memory_is_free(lab: Lab) -> None:
    """190 MiB are to be had, alpha is promised 170 of them."""
    alpha, beta = lab.endless("alpha", size="170MiB"), _cold(lab, "beta")
    async with lab.lswap({"alpha": alpha, "beta": beta}) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha") as stream:
            await stream.read(1)
            asked = tasks.create_task(_ask(lswap, "beta"))
            await _until_resident(beta["model"], 19 * MIB)
            await lswap.says("read ahead beta: 20 MiB of")
            assert _resident(beta["model"]) < SIZE  # 20, and what the kernel reads ahead by itself
        assert await asked == lab.sentence("beta")


async def test_it_can_be_switched_off(lab: Lab) -> None:
    beta = _cold(lab, "beta")
    models = {"alpha": lab.endless("alpha"), "beta": beta}
    async with lab.lswap(models, memory={"read_ahead": "off"}) as lswap:
        async with asyncio.TaskGroup() as tasks:
            async with lswap.stream("alpha") as stream:
                await stream.read(1)
                asked = tasks.create_task(_ask(lswap, "beta"))
                await lswap.until(
                    lambda now: any(one.claimed_by == "beta" for one in now.instances)
                )
                assert _resident(beta["model"]) < SIZE // 2
            assert await asked == lab.sentence("beta")
        assert (await lswap.state()).read_ahead_bytes_total == 0


async def test_what_is_kept_is_read_at_start_and_after_it_was_unloaded(lab: Lab) -> None:
    beta = _cold(lab, "beta", keep_in_ram=True)
    path = beta["model"]
    async with lab.lswap({"beta": beta}) as lswap:
        await _until_resident(path)
        await lswap.says("kept in memory beta: ")
        assert await lswap.chat("beta") == lab.sentence("beta")
        _drop(path)
        await lswap.client.post("/lswap/v1/models/beta/unload")
        await _until_resident(path)


async def test_what_a_changed_file_keeps_is_read(lab: Lab) -> None:
    beta = _cold(lab, "beta")
    async with lab.lswap({"beta": beta}) as lswap:
        lab.write_config({"beta": {**beta, "keep_in_ram": True}})
        await lswap.client.post("/lswap/v1/reload")
        await _until_resident(beta["model"])


async def test_no_more_is_kept_than_allowed(lab: Lab) -> None:
    beta = _cold(lab, "beta", keep_in_ram=True)
    async with lab.lswap({"beta": beta}, memory={"host_cache": "16MiB"}) as lswap:
        await lswap.says("kept in memory beta: 16 MiB of")
        assert _resident(beta["model"]) < SIZE


async def test_one_that_reads_past_the_cache_is_let_be(lab: Lab) -> None:
    beta, gamma = _cold(lab, "beta"), _cold(lab, "gamma", size="90MiB")
    beta["args"]["load-mode"] = "dio"
    models = {"alpha": lab.endless("alpha"), "beta": beta, "gamma": gamma}
    async with lab.lswap(models) as lswap, asyncio.TaskGroup() as tasks:
        async with lswap.stream("alpha") as stream:
            await stream.read(1)
            first = tasks.create_task(_ask(lswap, "beta"))
            await lswap.until(lambda now: any(one.waiting for one in now.models))
            second = tasks.create_task(_ask(lswap, "gamma"))
            await asyncio.wait_for(_until_resident(gamma["model"]), PATIENCE)
            assert _resident(beta["model"]) < SIZE // 2
        assert await first == lab.sentence("beta")
        assert await second == lab.sentence("gamma")
