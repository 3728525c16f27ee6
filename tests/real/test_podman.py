"""A real container: its memory is its model's, and a stop ends it. Opt-in: few machines can.

    LSWAP_TEST_IMAGE=debian:12 .venv/bin/python -m pytest tests/real/test_podman.py

LSWAP_TEST_IMAGE     an image with perl that is here already, like debian or ubuntu
LSWAP_TEST_ENGINE    how the container engine is called, with global options; without it: podman
LSWAP_TEST_OPTIONS   more options of `run`, like the limits that a restricted machine allows
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.test_programs import env_of, program
from tests.unit.child_runs import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

IMAGE: Final = os.environ["LSWAP_TEST_IMAGE"]
ENGINE: Final = shlex.split(os.environ.get("LSWAP_TEST_ENGINE", "podman"))
OPTIONS: Final = shlex.split(os.environ.get("LSWAP_TEST_OPTIONS", ""))
NAME: Final = f"lswap-test-{os.getpid()}"
MIB: Final = 300
pytestmark = pytest.mark.anyio
SERVER: Final = """
use IO::Socket::INET;
my ($port, $size) = @ARGV;
$SIG{TERM} = "IGNORE";
my $held = "x" x ($size << 20);
my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 16,
    ReuseAddr => 1) or die;
while (my $client = $server->accept) {
    while (defined(my $line = <$client>)) { last if $line eq "\\r\\n" }
    print $client "HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}";
    close $client;
}
"""
"""A server that heeds no SIGTERM, and holds some memory."""


def engine(*words: str) -> str:
    done = subprocess.run([*ENGINE, *words], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def containers() -> list[str]:
    """Return the containers of this test that there are, also those that have ended."""
    return engine("ps", "--all", "--quiet", "--filter", "label=lswap-test").split()


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    for one in containers():
        engine("rm", "--force", one)


async def loaded(lswap: Lswap) -> str:
    """Load the container's model, and return its container."""
    answer = await lswap.client.get("/upstream/box/?autoload=true")
    assert answer.status_code == 200, answer.text
    (container,) = containers()
    return container


async def all_removed(*, named: bool) -> None:
    """A name is free at once. Without one, Podman's own process may still be at the removal."""
    if named:
        assert containers() == []
    await until(lambda: not containers())


@pytest.mark.parametrize(("named", "stop_cmd"), [(True, True), (True, False), (False, False)])
async def test_a_real_container_is_its_models(lab: Lab, *, named: bool, stop_cmd: bool) -> None:
    """It is measured with the model, leaves for another one, and comes back under its name."""
    name = ["--name", NAME] if named else []
    how = ["run", "--rm", *name, "--label", "lswap-test", "--network", "host", "--pull", "never"]
    box: dict[str, Any] = {
        "cmd": [*ENGINE, *how, *OPTIONS, IMAGE, "perl", "-e", SERVER, "{port}", str(MIB)],
        "ready": {"http": "/"},
        "served_by": "container",
        "stop_timeout": "2s",
    }
    if stop_cmd:
        box["stop_cmd"] = [*ENGINE, "stop", "--time", "1", NAME]
    models = {"box": box, "other": program(memory={"host": "800MiB"})}
    room = {"devices": {"host": "1GiB"}, "margin": {"host": "0"}}
    async with lab.lswap(models, memory=room) as lswap:
        first = await loaded(lswap)
        told = await lswap.until(lambda now: (now.models[0].footprint or {}).get("host", 0) > 0)
        assert MIB << 20 < (told.models[0].footprint or {})["host"] < (MIB + 150) << 20
        await env_of(lswap, "other")
        await lswap.until_state("box", "unloaded")
        await all_removed(named=named)
        assert await loaded(lswap) != first
        said = await lab.cli("unload", "box", "--url", lswap.url)
        assert said.out == "box is unloaded\n"
        await all_removed(named=named)
        assert [one.kind for one in await lswap.decisions("box")].count("ready") == 2
