"""Two supervisors side by side: neither touches what is the other's."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import instance_of

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
