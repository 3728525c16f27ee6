"""A real `lswap up` under a service manager that the test plays itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.real.answers import PATIENCE
from tests.real.harness import command_line

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


class ServiceManager:
    """A notify socket, and what came through it."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)
        self.socket.setblocking(False)
        self.got: list[str] = []

    async def next(self, *wanted: str) -> str:
        """Return the next message that begins with one of `wanted`."""
        async with asyncio.timeout(PATIENCE):
            while True:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
                self.got.append(data.decode())
                if self.got[-1].startswith(wanted):
                    return self.got[-1]


@pytest.mark.parametrize("abstract", [False, True])
async def test_the_service_manager_hears_how_it_is(lab: Lab, abstract: bool) -> None:
    name = f"lswap-real-{os.getpid()}" if abstract else f"{lab.folder}/notify"
    manager = ServiceManager(f"\0{name}" if abstract else name)
    models = {"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}
    server = lab.server(
        lab.write_config(models),
        NOTIFY_SOCKET=f"@{name}" if abstract else name,
        WATCHDOG_USEC="1000000",
    )
    with manager.socket:
        async with server.running():
            assert await manager.next("READY", "STATUS") == (
                "STATUS=0 of 2 models loaded, 0 requests"
            )
            assert await manager.next("READY") == "READY=1"
            assert (await server.client.get("/livez")).status_code == 200
            await server.chat("alpha")
            await manager.next("STATUS=1 of 2 models loaded, 0 requests")
            (child,) = server.child_pids()
            inherited = psutil.Process(child).environ()
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(inherited)
            server.signal(signal.SIGHUP)
            reloading = await manager.next("RELOADING=1\nMONOTONIC_USEC=")
            assert reloading.rpartition("=")[2].isdecimal()
            assert await manager.next("READY") == "READY=1"
            server.config.write_text("nonsense")
            assert (await server.client.post("/lswap/v1/reload")).status_code == 400
            await manager.next("RELOADING=1")
            assert await manager.next("READY") == "READY=1", "a wrong file: it serves as before"
            await manager.next("WATCHDOG=1")
            await manager.next("WATCHDOG=1")
            async with server.stream("alpha", max_tokens=5):
                server.signal(signal.SIGTERM)
                await manager.next("STOPPING=1")
            assert await server.exited() == 0
    assert manager.got.count("READY=1") >= 3
    assert "READY=1" in manager.got[:2], "ready once, and not before it listens"


async def test_it_is_not_ready_when_it_cannot_start(lab: Lab) -> None:
    manager = ServiceManager(f"{lab.folder}/notify")
    config = lab.write_config({"alpha": lab.preset("alpha")}, engine="/absent/llama-server")
    with manager.socket:
        process = await asyncio.create_subprocess_exec(
            *command_line("up", str(config)),
            env=lab.environment({"NOTIFY_SOCKET": f"{lab.folder}/notify"}),
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 1
        with pytest.raises(BlockingIOError):
            manager.socket.recv(100)


async def test_it_serves_on_sockets_that_were_opened_before_it(lab: Lab) -> None:
    """As systemd.socket(5) does, and its sockets are still there when lswap is gone."""
    config = lab.write_config({"alpha": lab.preset("alpha")}, listen="127.0.0.1:1")
    path = f"{lab.folder}/clients.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen()
        fds = (tcp.fileno(), unix.fileno())
        shell = f'exec 3<&{fds[0]} 4<&{fds[1]}; export LISTEN_PID=$$ LISTEN_FDS=2; exec "$@" 2>&1'
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", shell, "bash", *command_line("up", str(config))),
            env=lab.environment(),
            pass_fds=fds,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                async for line in process.stdout:
                    if line.startswith(b"ready on "):
                        break
            url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
            assert line.split()[2:4] == [f"{url},".encode(), f"unix:{path}".encode()]
            over_unix = httpx.AsyncHTTPTransport(uds=path)
            async with (
                httpx.AsyncClient(base_url=url, trust_env=False) as one,
                httpx.AsyncClient(base_url="http://localhost", transport=over_unix) as two,
            ):
                for client in (one, two):
                    answer = await client.get("/lswap/v1/state")
                    assert json.loads(answer.content)["listen"] == [url, f"unix:{path}"]
        finally:
            process.terminate()
            async with asyncio.timeout(PATIENCE):
                await process.communicate()
        assert process.returncode == 0
        assert stat.S_ISSOCK(os.stat(path).st_mode), "it is the service manager's"
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(path)


async def test_sockets_open_to_others_need_keys_as_well(lab: Lab) -> None:
    config = lab.write_config({"alpha": lab.preset("alpha")})
    with socket.create_server(("0.0.0.0", 0)) as tcp:  # never accepts
        shell = f'exec 3<&{tcp.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 2>&1'
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", shell, "bash", *command_line("up", str(config))),
            env=lab.environment(),
            pass_fds=(tcp.fileno(),),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 2
    assert b"can be reached from other machines" in out
