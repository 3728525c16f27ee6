"""A disk that is full: a small one of lswap's own, mounted where nobody else sees it.

Where that is forbidden (many containers), lswap's files may not grow instead.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.real.harness import poll

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
_MOUNT = 'mount -t tmpfs -o size=2m none "$0" && exec "$@"'


@pytest.fixture
def own_mounts() -> tuple[str, ...]:
    """Return a command that runs another with mounts of its own, () where there is none."""
    unshare = shutil.which("unshare")
    words = (unshare or "", "--user", "--map-root-user", "--mount")
    if unshare is None or subprocess.run([*words, "true"], check=False).returncode:
        return ()
    return words


def fill(disk: Path) -> None:
    """Write until nothing more fits, to the byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass


async def test_a_full_disk(lab: Lab, own_mounts: tuple[str, ...]) -> None:
    """Logs, records of children, what was learned, caches: nothing can be written, all goes on."""
    folder = lab.folder / "disk"
    folder.mkdir()
    size = "60MiB"
    models = {name: lab.preset(name, size=size) for name in ("alpha", "beta", "gamma")}
    models["long"] = lab.endless("long", size=size)
    config = lab.write_config(models, log={"dir": str(folder / "logs")})
    kinds = ("RUNTIME_DIR", "STATE_HOME", "CACHE_HOME")
    server = lab.server(config, **{f"XDG_{kind}": str(folder) for kind in kinds})
    if own_mounts:
        server.wrapper = (*own_mounts, "sh", "-c", _MOUNT, str(folder))
    async with server.running():
        disk = Path(f"/proc/{server.pid}/root{folder}")
        assert not own_mounts or shutil.disk_usage(disk).total == 2 << 20
        crowd = Crowd(server, {name: lab.sentence(name) for name in models}, frozenset({"long"}))

        def learned() -> dict[str, bytes]:
            return {one.name: one.read_bytes() for one in (disk / "lswap/learned").glob("*.json")}

        async def remembers() -> bool:
            return len(learned()) == len(models) and all(map(bool, learned().values()))

        async with asyncio.timeout(100), crowd.asking():
            await crowd.until_answered(2)
            if sys.platform != "linux":
                pytest.skip("missing: Linux")
            old = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
            if own_mounts:
                await asyncio.to_thread(fill, disk)
                assert shutil.disk_usage(disk).free == 0
            else:
                resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, old[1]))
            for name in models:  # each loads anew, with a record and a log
                await server.client.post(f"/lswap/v1/models/{name}/unload?force=true")
                await crowd.until_answered(1, name)
            await server.says("No space left on device" if own_mounts else "File too large")
            await server.until_logged("alpha", "it will lack lines")
            kept = learned()
            (disk / "filler").unlink(missing_ok=True)
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, old)
            before = {one.name: one.stat().st_size for one in (disk / "logs").glob("*.log")}
            for name in models:
                await server.client.post(f"/lswap/v1/models/{name}/unload?force=true")
                await crowd.until_answered(1, name)
        assert all(kept.values()), "what was there before was spoiled"
        await check_all(server, crowd, hit=models)
        await poll(remembers)
        after = {one.name: one.stat().st_size for one in (disk / "logs").glob("*.log")}
        assert all(after[name] > before.get(name, 0) for name in after), "logs are written again"
        assert set(after) == {f"{name}.log" for name in models}
        assert sum("cannot write" in line for line in server.log) <= 2, "said once, not each time"
        await server.stop()


_SMALL = 'mount -t tmpfs -o size=8m,nr_inodes=40 none "$0" && exec "$@"'


@pytest.mark.parametrize("how", ["read-only", "no-inodes"])
async def test_a_disk_that_takes_no_new_files(
    lab: Lab, own_mounts: tuple[str, ...], how: str
) -> None:
    """Logs, captures, caches, what was learned: all are lost, and every model is served."""
    nsenter = shutil.which("nsenter")
    if not own_mounts or nsenter is None:
        pytest.skip("no mounts of our own")
    folder = lab.folder / "disk"
    folder.mkdir()
    size = "60MiB"
    models = {name: lab.preset(name, size=size) for name in ("alpha", "beta")}
    models["alpha"].pop("memory")  # it is estimated, and kept
    log = {"dir": str(folder / "logs")}
    config = lab.write_config(models, log=log, capture="on")
    server = lab.server(config, XDG_STATE_HOME=str(folder), XDG_CACHE_HOME=str(folder))
    server.wrapper = (*own_mounts, "sh", "-c", _SMALL, str(folder))
    async with server.running():
        disk = Path(f"/proc/{server.pid}/root{folder}")
        assert await server.chat("beta") == lab.sentence("beta")
        if how == "read-only":
            enter = (nsenter, "--user", "--mount", "--target", str(server.pid))
            words = (*enter, "mount", "-o", "remount,ro", str(folder))
            await asyncio.to_thread(subprocess.run, words, check=True)
        else:
            with suppress(OSError):
                for number in range(100):
                    (disk / f"filler-{number}").touch()
        with pytest.raises(OSError, match=r"Read-only|No space"):
            (disk / "more").touch()
        for _ in range(2):
            for name in models:
                assert await server.chat(name) == lab.sentence(name)
                await server.client.post(f"/lswap/v1/models/{name}/unload?force=true")
        await server.says("going on without")
        if how == "read-only":
            await server.until_logged("alpha", "it will lack lines")
        await server.stop()
