"""Two supervisors side by side: neither touches what is the other's."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import instance_of
from tests.real.harness import Lswap

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def test_one_is_killed_and_started_again(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}
    one = lab.server(lab.write_config(models, name="one"))
    async with lab.lswap(models, name="two") as two, two.stream("alpha", max_tokens=1) as stream:
        await stream.rest()
        pid = instance_of(await two.state(), "alpha").pid
        async with one.running():
            assert await one.chat("alpha") == lab.sentence("alpha")
            assert not one.child_pids() & two.child_pids()
            one.signal(signal.SIGKILL)
            await one.exited()
            await one.until_no_process_is_left(seconds=1.0)
        again = lab.server(one.config)
        async with again.running():
            assert await again.chat("beta") == lab.sentence("beta")
            assert instance_of(await two.state(), "alpha").pid == pid
            assert pid in two.child_pids()
            assert await two.chat("alpha") == lab.sentence("alpha")
            await again.stop()
        assert two.child_pids() == {pid}
        assert (await two.state()).loads_total == 1


async def test_the_same_configuration_twice_is_refused(lab: Lab) -> None:
    """The second one says who holds it, and harms nothing."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        second = await lab.cli("up", str(lswap.config))
        assert second.code == 1
        assert f"another lswap (pid {lswap.pid}) runs with this configuration" in second.err
        assert "--name" in second.err
        assert "Traceback" not in second.err
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert (await lswap.state()).loads_total == 1


async def test_two_without_a_file_run_side_by_side(lab: Lab) -> None:
    """Each is its own by its folder and its address; commands find them, and list them."""
    for name in ("alpha", "beta"):
        (lab.folder / name).mkdir()
        (lab.folder / name / f"{name}.gguf").symlink_to(lab.preset(name)["model"])
    engine = {"LSWAP_LLAMA_SERVER": lab.engine}
    env = lab.environment(engine)

    def bare(name: str, port: str = "0") -> Lswap:
        args = (str(lab.folder / name), "--port", port)
        return Lswap(lab.folder / "none.yaml", env, args)

    async with bare("alpha").running() as one:
        only = await lab.cli("models", "--json")
        assert [each["id"] for each in only.json()] == ["alpha"]
        async with bare("beta").running() as two:
            assert await one.chat("alpha") == lab.sentence("alpha")
            assert await two.chat("beta") == lab.sentence("beta")
            several = await lab.cli("ps")
            assert several.code == 2
            for lswap in (one, two):
                assert f"{lswap.url} (pid {lswap.pid}, serves " in several.err
            status = await lab.cli("status", "--json")
            assert [each["loaded"] for each in status.json()] == [
                ["alpha (ready)"],
                ["beta (ready)"],
            ]
            same = await lab.cli("up", str(lab.folder / "beta"), "--port", "0", **engine)
            assert same.code == 1
            assert f"another lswap (pid {two.pid}) runs with this configuration" in same.err
            assert "lswap stop" in same.err
            stopped = await lab.cli("stop", "--url", f"{two.url}/v1")
            assert (stopped.code, await two.exited()) == (0, 0)
        port = one.url.rpartition(":")[2]
        taken = await lab.cli("up", str(lab.folder / "beta"), "--port", port, **engine)
        assert taken.code == 1
        assert f"another lswap is there, {one.url} (pid {one.pid}" in taken.err
        said = await lab.cli("logs")
        assert said.out.startswith("lswap ")
        assert "ready alpha#1" in said.out
        stopped = await lab.cli("stop")
        assert (stopped.code, await one.exited()) == (0, 0)
    nobody = await lab.cli("stop")
    assert nobody.code == 3
