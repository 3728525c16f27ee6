"""Logs of a real lswap: one id through them, no secrets, and a disk that is full."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.real.answers import PATIENCE, chat_body, text_of
from tests.real.harness import command_line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
_TOKEN = "hf_" + "secretword" * 3


async def test_one_id_leads_from_the_answer_to_the_decision(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha"), "broken": {"model": "absent.gguf"}}
    async with lab.lswap(models, log={"format": "json", "level": "info"}) as lswap:
        answer = await lswap.client.post(
            "/v1/chat/completions", json=chat_body("alpha"), headers={"x-request-id": "mine-7"}
        )
        assert answer.headers["x-request-id"] == "mine-7"
        entries: list[dict[str, Any]] = [
            json.loads(line) for line in lswap.log if line.startswith("{")
        ]
        (load,) = [one for one in entries if one.get("request") == "mine-7"]
        assert (load["decision"], load["model"], load["instance"]) == ("load", "alpha", "alpha#1")
        ready = [one for one in entries if one.get("decision") == "ready"]
        assert ready[0]["instance"] == "alpha#1"


async def test_secrets_are_nowhere_to_be_seen(lab: Lab) -> None:
    folder = lab.folder / "logs"
    folder.mkdir()
    preset = lab.fake(
        "alpha", env={"MY_API_KEY": _TOKEN[3:], "FAKE_STDERR": f"my key is {_TOKEN[3:]}\n"}
    )
    async with lab.lswap({"alpha": preset}, log={"dir": str(folder), "level": "debug"}) as lswap:
        await lswap.fake_answer("alpha")
        logged = await lswap.logs("alpha")
        state = (await lswap.client.get("/lswap/v1/state")).text
        assert "my key is [redacted]" in logged
        await lab.cli("unload", "alpha", "--url", lswap.url)
        file = read(folder / "alpha.log")
        assert "my key is [redacted]" in file
        assert file.startswith("[alpha#1 pid ")
        for text in (logged, state, file, "".join(lswap.log)):
            assert _TOKEN[3:] not in text


async def test_files_of_a_model_are_set_aside(lab: Lab) -> None:
    folder = lab.folder / "logs"
    folder.mkdir()
    preset = lab.fake("alpha", env={"FAKE_FLOOD": "300000"})
    keys = {"dir": str(folder), "rotate": "100KiB"}
    async with lab.lswap({"alpha": preset}, log=keys) as lswap:
        for _ in range(3):
            await lswap.fake_answer("alpha")
            await lab.cli("unload", "alpha", "--url", lswap.url)
    names = sorted(os.listdir(folder))
    assert {"alpha.log.1", "alpha.log.2", "alpha.log.3"} <= set(names)
    assert set(names) <= {"alpha.log", "alpha.log.1", "alpha.log.2", "alpha.log.3"}


async def test_a_log_that_nobody_reads_or_can_keep_disturbs_nothing(lab: Lab) -> None:
    """stderr is a pipe that is full, stdout and the models' files a disk that is."""
    if sys.platform != "linux":
        pytest.skip("missing: Linux")
    models = {"alpha": lab.preset("alpha")}
    path = f"{lab.folder}/clients.sock"
    config = lab.write_config(models, listen=f"unix:{path}", log={"dir": str(lab.folder / "gone")})
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230 (a device)
        process = await asyncio.create_subprocess_exec(
            *command_line("up", str(config), "--verbose"),
            env=lab.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=full,
            stderr=writer,
        )
    os.close(writer)
    try:
        transport = httpx.AsyncHTTPTransport(uds=path, retries=0)
        async with httpx.AsyncClient(
            base_url="http://localhost", transport=transport, timeout=PATIENCE
        ) as client:
            async with asyncio.timeout(PATIENCE):
                while "clients.sock" not in os.listdir(lab.folder):  # noqa: ASYNC110 (a process's)
                    await asyncio.sleep(0.01)
            for _ in range(100):
                answer = await client.post("/v1/chat/completions", json=chat_body("alpha"))
                assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reader)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


async def test_no_warning_is_about_what_never_reaches_a_child(lab: Lab) -> None:
    """llama-server warns of pages of any origin; it listens on a private socket."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        headers = {"origin": "http://127.0.0.1:9"}
        body = chat_body("alpha")
        answer = await lswap.client.post("/v1/chat/completions", json=body, headers=headers)
        assert text_of(answer) == lab.sentence("alpha")
        assert not [line for line in (await lswap.logs("alpha")).splitlines() if "CORS" in line]
