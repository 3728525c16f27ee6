"""A changed file is taken over while streams run: by watching, by signal, by command."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.real.answers import error_of

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


def rewrite(lab: Lab, lswap: Lswap, models: dict[str, Any], **keys: Any) -> None:
    """Replace the file as editors do: write another, rename it over the old one."""
    fresh = lswap.config.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(lab.config(models, **keys), sort_keys=False))
    fresh.replace(lswap.config)


async def test_streams_run_through_a_reload_untouched(lab: Lab) -> None:
    models = {
        "alpha": lab.endless("alpha", size="50MiB"),
        "beta": lab.endless("beta", size="50MiB"),
        "gone": lab.preset("gone", size="50MiB"),
    }
    async with (
        lab.lswap(models) as lswap,
        lswap.stream("alpha", max_tokens=100_000) as same,
        lswap.stream("beta", max_tokens=100_000) as other,
    ):
        await same.read(3)
        await other.read(3)
        before = {one.preset: one.pid for one in (await lswap.state()).instances}
        changed = {
            "alpha": models["alpha"],
            "beta": {**models["beta"], "args": {**models["beta"]["args"], "ctx-size": 768}},
            "delta": lab.preset("delta", size="20MiB"),
        }
        rewrite(lab, lswap, changed)
        done = await lab.cli("reload", "--url", lswap.url)
        assert done.code == 0, done.err
        if "added" in done.out:  # else the watch was faster
            assert done.out.splitlines() == ["added: delta", "removed: gone", "changed: beta"]
        await lswap.says("the file is taken over: added delta; removed gone; changed beta")
        await same.read(3)
        await other.read(3)
        state = await lswap.state()
        assert {one.id for one in state.models} == {"alpha", "beta", "delta"}
        running = {one.preset: one for one in state.instances}
        assert running["alpha"].pid == before["alpha"]
        assert running["alpha"].state == "ready"
        assert (running["beta"].pid, running["beta"].state) == (before["beta"], "draining")
        assert await lswap.chat("delta") == lab.sentence("delta")
        error = error_of(await lswap.post_chat("gone"), 404)
        assert error["code"] == "model_not_found"
        fresh = await lswap.post_chat("beta", max_tokens=3)
        assert fresh.status_code == 200, "the new one serves beside the one that drains"
        await other.read(3)
        beta = [one for one in (await lswap.state()).instances if one.preset == "beta"]
        assert sorted(one.state for one in beta) == ["draining", "ready"]


async def test_what_was_wrong_at_the_start_stands_in_no_change_s_way(lab: Lab) -> None:
    """A preset that worked is not given up for a mistake in its entry."""
    alpha = lab.preset("alpha", size="50MiB")
    async with lab.lswap({"alpha": alpha, "bad": {"cmd": ["compose"]}}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        beta = lab.preset("beta", size="50MiB")
        rewrite(lab, lswap, {"alpha": alpha, "bad": {"cmd": ["compose"]}, "beta": beta})
        await lswap.says("the file is taken over: added beta")
        assert await lswap.chat("beta") == lab.sentence("beta")
        rewrite(lab, lswap, {"alpha": {**alpha, "ttl": "soon"}, "bad": {"cmd": ["x"]}})
        await lswap.says("the file is not taken over, what was loaded serves on")
        assert await lswap.chat("beta") == lab.sentence("beta")
        rewrite(lab, lswap, {"alpha": alpha, "bad": lab.preset("beta", size="50MiB")})
        await lswap.says("the file is taken over: removed beta; changed bad")
        assert await lswap.chat("bad") == lab.sentence("beta")


async def test_a_wrong_file_changes_nothing_and_says_why(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", size="50MiB")}
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        (pid,) = lswap.child_pids()
        lswap.config.write_text("models:\n  alpha: {modell: x}\n")
        answer = await lswap.client.post("/lswap/v1/reload")
        error = error_of(answer, 400)
        assert error["code"] == "bad_config"
        assert "modell" in error["message"]
        refused = await lab.cli("reload", "--url", lswap.url)
        assert refused.code == 1
        assert "modell" in refused.err
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert lswap.child_pids() == {pid}
        rewrite(lab, lswap, models, policy={"max_wait": "7s"})
        report = (await lswap.client.post("/lswap/v1/reload")).json()
        assert report == {"added": [], "removed": [], "changed": [], "needs_restart": ["policy"]}
        rewrite(lab, lswap, models, policy={"max_wait": "8s"}, log={"level": "debug"})
        done = await lab.cli("reload", "--url", lswap.url)
        said = "policy, log: take effect after a restart. Models: no change."
        if "restart" in done.out:  # else the watch was faster
            assert sorted(done.out.replace(",", "").replace(":", "").split()) == sorted(
                said.replace(",", "").replace(":", "").split()
            )


async def test_the_file_is_watched_and_sighup_reads_it(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", size="50MiB")}
    async with lab.lswap(models) as lswap:
        rewrite(lab, lswap, {**models, "beta": lab.preset("beta", size="50MiB")})
        await lswap.until(lambda state: len(state.models) == 2)
        assert await lswap.chat("beta") == lab.sentence("beta")
        rewrite(lab, lswap, models)
        lswap.signal(signal.SIGHUP)
        await lswap.until(lambda state: len(state.models) == 1)


async def test_a_model_that_is_estimated_is_estimated_anew(lab: Lab) -> None:
    preset = lab.preset("alpha")
    del preset["memory"]
    async with lab.lswap({"alpha": preset}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        rewrite(lab, lswap, {"alpha": {**preset, "args": {"ctx-size": 1024}}, "beta": preset})
        await lswap.client.post("/lswap/v1/reload")
        async with asyncio.timeout(60):
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            assert await lswap.chat("beta") == lab.sentence("alpha")
        (alpha, _) = (await lswap.state()).models
        assert alpha.footprint_source in ("measured", "dry-run", "analytic")


async def test_a_model_whose_file_comes_later_is_served(lab: Lab) -> None:
    """Also after a reload at whose time the file was missing, and where it was not a GGUF file."""
    models = {name: lab.preset(name) for name in ("alpha", "beta")}
    files = {name: Path(models[name]["model"]) for name in models}
    away = files["alpha"].rename(files["alpha"].with_suffix(".away"))
    good = files["beta"].read_bytes()
    files["beta"].write_bytes(b"not yet")
    async with lab.lswap(models) as lswap:
        for name, what in (("alpha", "no such file"), ("beta", "not a GGUF file")):
            error = error_of(await lswap.post_chat(name), 503)
            assert what in error["message"]
        away.rename(files["alpha"])
        await lswap.says("taken over: changed alpha")
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        files["beta"].write_bytes(good)
        await lswap.says("taken over: changed beta")
        assert await lswap.chat("beta") == lab.sentence("beta")
