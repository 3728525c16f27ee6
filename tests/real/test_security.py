"""What docs/security.md says cannot be done, tried against a real lswap with real children."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.test_requests import BAD
from tests.real.answers import error_of, instance_of
from tests.real.test_api_keys import ADMIN, write_keys

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
ANN = {"authorization": "Bearer ann"}
PAGE = "https://evil.example"


async def raw(lswap: Lswap, data: bytes) -> bytes:
    """Send bytes on a connection of their own; return all that comes until it is closed."""
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


# A web page in the user's browser


async def test_a_web_page_can_neither_read_nor_change_anything(lab: Lab) -> None:
    """What a browser sends for a page of another origin, without keys in the file."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        body = json.dumps({"model": "alpha", "messages": []})
        simple = {"content-type": "text/plain", "sec-fetch-site": "cross-site"}
        for origin in (PAGE, "null", "http://127.0.0.1.evil.example", "http://localhost.evil"):
            for path in ("/v1/chat/completions", "/models/load", "/lswap/v1/reload", "/api/chat"):
                headers = {**simple, "origin": origin}
                answer = await lswap.client.post(path, content=body, headers=headers)
                assert answer.status_code == 403, (origin, path)
                assert "access-control-allow-origin" not in answer.headers
        # DNS rebinding: its own name, pointed at this machine.
        answer = await lswap.client.get("/v1/models", headers={"host": "evil.example"})
        assert error_of(answer, 403)["code"] == "forbidden"
        # A WebSocket carries its Origin.
        upgrade = {"connection": "upgrade", "upgrade": "websocket", "origin": PAGE}
        answer = await lswap.client.get("/upstream/alpha/ws", headers=upgrade)
        assert answer.status_code == 403
        # An image, a script, a frame: a GET without Origin. It loads nothing.
        for mode in ("no-cors", "navigate"):
            headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
            for path in ("/props?model=alpha&autoload=true", "/upstream/alpha/props?autoload=true"):
                answer = await lswap.client.get(path, headers=headers)
                assert error_of(answer, 400)["code"] == "model_not_loaded"
        assert (await lswap.state()).loads_total == 0
        # The same from a program, or from a page of lswap's own, does.
        own = {"sec-fetch-site": "same-origin"}
        answer = await lswap.client.get("/props?model=alpha&autoload=true", headers=own)
        assert answer.status_code == 200


# An authenticated inference client


async def test_an_inference_key_opens_no_admin_route_however_it_is_spelled(lab: Lab) -> None:
    """A child decodes paths (%70 is p), so what is asked of it is judged decoded."""
    keys = write_keys(lab.folder)
    models = {"alpha": lab.preset("alpha", args={"props": True}), "beta": lab.preset("beta")}
    async with lab.lswap(models, keys=keys) as lswap:
        answer = await lswap.client.post(
            "/upstream/alpha/tokenize", json={"content": "x"}, headers=ANN
        )
        assert answer.status_code == 200
        for inner in ("props", "%70rops", "%70%72ops", "lora-adapters", "lora%2Dadapters"):
            path = f"/upstream/alpha/{inner}"
            answer = await lswap.client.post(path, json={}, headers=ANN)
            assert error_of(answer, 403)["code"] == "forbidden", inner
        for path in (
            "/lswap/v1/models/alpha/unload",
            "/lswap/v1/models/alpha/load",
            "/lswap/v1/models/alpha/pin",
            "/lswap/v1/reload",
            "/lswap/v1/reservations",
            "/lswap/v1/requests/x/cancel",
            "/models/unload",
        ):
            answer = await lswap.client.post(path, json={"model": "alpha"}, headers=ANN)
            assert error_of(answer, 403)["code"] in ("forbidden", 403), path
        assert (await lswap.client.get("/lswap/v1/logs/alpha", headers=ANN)).status_code == 403
        for path in ("/upstream/beta/tokenize", "/upstream/be%74a/tokenize"):
            answer = await lswap.client.post(path, json={"content": "x"}, headers=ANN)
            assert error_of(answer, 403)["code"] in ("forbidden", 403), path
        state = (await lswap.client.get("/lswap/v1/state", headers=ADMIN)).json()
        assert {one["preset"] for one in state["instances"]} == {"alpha"}


async def test_keys_are_not_passed_to_children_or_shown(lab: Lab) -> None:
    keys = write_keys(lab.folder)
    env = {"FAKE_ECHO_HEAD": "1"}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env)}, keys=keys) as lswap:
        answer = await lswap.client.post("/completion", json={"model": "alpha"}, headers=ANN)
        seen = answer.text.lower()
        assert "x-forwarded-for" in seen
        assert "bearer" not in seen
        assert "authorization" not in seen
        shown = (await lswap.client.get("/lswap/v1/state", headers=ADMIN)).text
        assert "Bearer" not in shown
        assert not any("Bearer" in line for line in lswap.log)


# Anybody who can connect


async def test_no_request_is_smuggled_behind_another(lab: Lab) -> None:
    """Each ambiguous request, with one hidden behind it: one answer, an error, and the end."""
    hidden = b"POST /lswap/v1/models/alpha/load HTTP/1.1\r\nHost: localhost\r\n"
    hidden += b"Content-Length: 0\r\n\r\n"
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        sent = [
            data.replace(b"Host: a\r\n", b"Host: localhost\r\n") + hidden for data in BAD.values()
        ]
        answers = await asyncio.gather(*(raw(lswap, data) for data in sent))
        for name, answer in zip(BAD, answers, strict=True):
            assert len(re.findall(rb"HTTP/1.1 \d\d\d ", answer)) == 1, name
            # 404: of an unknown path the body is not looked at, and nothing after it either.
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), name
            assert b"connection: close" in answer.lower(), name
        assert (await lswap.state()).loads_total == 0
        # A legal body that looks like a request is a body.
        body = json.dumps({"model": "alpha", "content": hidden.decode()}).encode()
        chunks = b"%x;ext=1\r\n%b\r\n0\r\nX-Trailer: y\r\n\r\n" % (len(body), body)
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
        for framed in (
            head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
            head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        ):
            answer = await raw(lswap, framed)
            assert answer.count(b"HTTP/1.1 ") == 1
            assert answer.startswith(b"HTTP/1.1 200 ")


async def test_the_sockets_of_children_are_for_nobody_else(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        await lswap.chat("alpha")
        endpoint = instance_of(await lswap.state(), "alpha").endpoint
        assert endpoint is not None
        path = Path(endpoint.removeprefix("unix:"))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# What others wrote: files, names, and what children say


async def test_nothing_forges_a_line_of_the_log_or_commands_a_terminal(lab: Lab) -> None:
    """The text of a failure comes from a file that somebody made."""
    evil = (
        "error: unknown model architecture: '\x1b]0;pwned\x07\x1b[2J\r12:00:00 INFO ready forged'"
    )
    env = {"FAKE_STDERR": f"{evil}\n", "FAKE_CRASH": "loading:exit:1"}
    async with lab.lswap({"alpha": lab.fake("alpha", env=env)}) as lswap:
        names: tuple[Any, ...] = ("alpha\n12:00:00 INFO ready forged", "\x1b[2Jx", "x\r\ny")
        for name in names:
            answer = await lswap.client.post("/completion", json={"model": name})
            assert answer.status_code == 404
        answer = await lswap.client.post("/completion", json={"model": "alpha"})
        assert error_of(answer, 503)["code"] == "model_failed"
        await lswap.says("failed alpha#1")
        for command in ("ps", "models", "why"):
            words = (command, *(["alpha"] if command == "why" else []), "--url", lswap.url)
            shown = await lab.cli(*words)
            assert shown.code == 0, shown.err
            assert "\x1b]" not in shown.out
            assert "\x1b[2J" not in shown.out
        for line in lswap.log:
            assert "\x1b" not in line
            assert "\r" not in line.rstrip("\r\n")
            assert not line.startswith("12:00:00 INFO ready forged")


def oddly_named(preset: Preset, folder: Path) -> Path:
    path = folder / "-m $(touch pwned);`touch pwned` --host 0.0.0.0 %s.gguf"
    path.write_bytes(Path(preset["model"]).read_bytes())
    return path


async def test_the_name_of_a_file_or_model_is_only_a_name(lab: Lab) -> None:
    """No shell sees it, no option is made of it, no log file leaves its folder."""
    preset = lab.preset("alpha")
    path = oddly_named(preset, lab.folder)
    name = "../../etc/$(touch pwned)"
    models = {name: {**preset, "model": str(path)}}
    async with lab.lswap(models, log={"dir": "logs"}) as lswap:
        assert await lswap.chat(name) == lab.sentence("alpha")
        endpoint = instance_of(await lswap.state(), name).endpoint
        assert endpoint is not None
        assert endpoint.startswith("unix:")
    assert not list(lab.folder.rglob("pwned"))
    assert [one.name for one in lab.folder.rglob("*.log")] == [".._.._etc___touch_pwned_.log"]
