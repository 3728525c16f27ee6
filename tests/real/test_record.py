"""A real run that is recorded: `lswap simulate --replay` comes to the same decisions."""

from __future__ import annotations

import asyncio
import resource
import signal
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llamaswap_py.config.api_keys import hash_secret
from tests.real.answers import chat_body
from tests.real.harness import poll
from tests.real.test_reload import rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
SECRET = "lsk-the-secret-of-ann"
PROMPT = "a-prompt-that-nobody-else-may-read"


def recording(lab: Lab, models: dict[str, Preset], **keys: Any) -> tuple[Lswap, Path]:
    """Return a server that is not started yet, and the record that it will write."""
    config, record = lab.write_config(models, **keys), lab.folder / "run.record"
    server = lab.server(config)
    server.args = (str(config), "--record", str(record))
    return server, record


def write_keys(lab: Lab) -> dict[str, str]:
    path = lab.folder / "keys.yaml"
    admin = {"name": "ann", "kind": "admin", "hash": hash_secret(SECRET.encode())}
    path.write_text(yaml.safe_dump({"keys": [admin]}))
    path.chmod(0o600)
    return {"file": str(path)}


async def leave(lswap: Lswap, model: str) -> None:
    """Ask for a model beside one that is busy, and go away once the request waits."""
    task = asyncio.create_task(lswap.post_chat(model))
    await lswap.until(lambda now: now.requests_open == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def replayed(lab: Lab, record: Path, *more: str) -> dict[str, Any]:
    done = await lab.cli("simulate", "--replay", str(record), "--json", *more)
    assert done.code == 0, done.out + done.err
    found: dict[str, Any] = done.json()
    return found


async def test_a_run_with_swaps_queues_and_a_reload_replays_the_same(lab: Lab) -> None:
    models = {name: lab.preset(name, args={"parallel": 1}) for name in ("alpha", "beta", "gamma")}
    models["long"] = lab.endless("long", args={"parallel": 1})
    del models["beta"]["memory"]  # it is estimated, and measured
    server, record = recording(lab, models, keys=write_keys(lab))
    async with server.running() as lswap:
        lswap.client.headers["authorization"] = f"Bearer {SECRET}"
        said = {"x-request-id": "named-by-its-client"}
        body = chat_body("alpha", messages=[{"role": "user", "content": PROMPT}])
        answer = await lswap.client.post("/v1/chat/completions", json=body, headers=said)
        assert answer.status_code == 200
        for name in ("alpha", "alpha", "beta", "gamma", "alpha"):  # granted at once, and swaps
            assert await lswap.chat(name) == lab.sentence(name)
        answers = await asyncio.gather(*(lswap.chat(name) for name in ["alpha", "gamma"] * 4))
        assert set(answers) == {lab.sentence("alpha"), lab.sentence("gamma")}
        async with lswap.stream("long", max_tokens=100_000) as stream:
            await stream.read(3)
            await leave(lswap, "alpha")
        await lswap.until_idle()
        rewrite(lab, lswap, {**models, "delta": lab.preset("delta")}, keys=write_keys(lab))
        await lswap.says("the file is taken over: added delta")
        assert await lswap.chat("delta") == lab.sentence("delta")
        await lswap.client.post("/lswap/v1/models/delta/unload")
        await lswap.until_state("delta", "unloaded")
        before = await lswap.decisions()
        await lswap.stop()
    report = await replayed(lab, record)
    assert (report["difference"], report["trouble"]) == (None, [])
    found = [(one["decision"], one["model"], one["reason"]) for one in report["decisions"]]
    told = [(one.kind, one.preset, one.epoch, one.reason) for one in before]
    names = [
        (kind, f"{preset}#{epoch}" if epoch else preset, why) for kind, preset, epoch, why in told
    ]
    assert [one for one in found if one in names][: len(names)] == names
    assert report["granted"] >= 14
    text = record.read_text()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    for private in (SECRET, PROMPT, "named-by-its-client", "key ann", "127.0.0.1"):
        assert private not in text


async def test_a_record_of_an_lswap_that_was_killed_replays_as_far_as_it_goes(lab: Lab) -> None:
    server, record = recording(lab, {"alpha": lab.preset("alpha")})
    async with server.running() as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await poll(lambda: written(record, "RequestFinished"))
        lswap.signal(signal.SIGKILL)
        await lswap.exited()
    done = await lab.cli("simulate", "--replay", str(record))
    assert done.code == 2
    assert "lswap was killed or still runs, or the file was cut; `--until " in done.err
    last = done.err.partition("--until ")[2].partition("`")[0]
    report = await replayed(lab, record, "--until", last)
    assert report["granted"] == 1


async def test_a_disk_that_is_full_ends_the_record_and_nothing_else(lab: Lab) -> None:
    if sys.platform != "linux":
        pytest.skip("missing: Linux")
    models = {name: lab.preset(name) for name in ("alpha", "beta")}
    server, record = recording(lab, models)
    async with server.running() as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await poll(lambda: written(record, "RequestFinished"))
        old = resource.prlimit(lswap.pid, resource.RLIMIT_FSIZE)
        size = record.stat().st_size + 100
        resource.prlimit(lswap.pid, resource.RLIMIT_FSIZE, (size, old[1]))
        assert await lswap.chat("beta") == lab.sentence("beta")
        await lswap.says("run.record ends here, and lswap goes on: File too large")
        resource.prlimit(lswap.pid, resource.RLIMIT_FSIZE, old)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.stop()
    assert record.stat().st_size == size
    done = await lab.cli("simulate", "--replay", str(record))
    assert (done.code, done.out) == (2, "")
    assert "this line is incomplete" in done.err
    lines = record.read_bytes().count(b"\n")
    assert f"`--until {lines}` replays what comes before" in done.err
    assert (await replayed(lab, record, "--until", str(lines)))["events"] == lines - 1


async def test_a_file_that_is_no_record_is_not_written_over(lab: Lab) -> None:
    config = lab.write_config({"alpha": lab.preset("alpha")})
    before = config.read_bytes()
    done = await lab.cli("up", str(config), "--record", str(config))
    assert done.code == 1
    assert "lswap.yaml is there, and is not a record that lswap has written" in done.err
    assert config.read_bytes() == before


async def written(record: Path, event: str) -> bool:
    return f'["{event}"' in await asyncio.to_thread(record.read_text)
