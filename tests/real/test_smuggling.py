"""Two readers of one connection must agree where a request ends, or one hides behind another.

The strict rule (RFC 9112) says which requests lswap takes. What a child makes of them is asked of
two children: one writes down every byte that lswap sends it, the other is the real llama-server,
which is given those bytes by hand, and each case as it is, too.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import pytest

from tests.real.answers import instance_of
from tests.real.smuggling import HIDDEN, LEGAL, REFUSED, render

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def told(
    data: bytes, *, tcp: tuple[str, int] | None = None, path: Path | None = None
) -> bytes:
    """Send bytes on a connection of their own; return all that comes until it is closed.

    Who sees another request in them answers that too; who waits for more of one sees their end.
    """
    opened = asyncio.open_unix_connection(path) if tcp is None else asyncio.open_connection(*tcp)
    reader, writer = await opened
    received = b""
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(data)
            writer.write_eof()
            while piece := await reader.read(65536):
                received += piece
    except ConnectionError:
        pass  # closed with bytes unread
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return received


def statuses(answers: bytes) -> list[int]:
    """Return the status of each answer; their bodies are JSON, without such lines."""
    return [int(one) for one in _STATUS.findall(answers) if one != b"100"]


def requests_in(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return target and body of each request that h11, which is strict, reads in these bytes."""
    connection, found, body = h11.Connection(h11.SERVER), [], b""
    if data:  # none would be its end
        connection.receive_data(data)
    while (event := connection.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.Request):
            target, body = event.target, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage), event
            found.append((target, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    return found


def address_of(lswap: Lswap) -> tuple[str, int]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def socket_of(lswap: Lswap, model: str) -> Path:
    endpoint = instance_of(await lswap.state(), model).endpoint
    assert endpoint is not None
    return Path(endpoint.removeprefix("unix:"))


async def test_two_readers_of_one_connection_agree(lab: Lab) -> None:
    tape = lab.folder / "tape"
    models = {
        "alpha": lab.preset("alpha", size="50MiB"),
        "tape": {**lab.fake("tape", size="50MiB"), "engine": lab.recording_engine()},
    }
    async with lab.lswap(models) as lswap:
        for model in models:
            ask = {"model": model, "content": "hello"}
            assert (await lswap.client.post("/tokenize", json=ask)).status_code == 200
        child = await socket_of(lswap, "alpha")

        async def through(template: bytes, model: str) -> tuple[list[int], bytes]:
            """Return the answers, and what the child that records was sent meanwhile."""
            before = tape.stat().st_size
            answers = await told(render(template, model) + HIDDEN, tcp=address_of(lswap))
            return statuses(answers), tape.read_bytes()[before:]

        for name, template in REFUSED.items():
            for model in models:
                answered, sent = await through(template, model)
                assert len(answered) == 1, f"{name}: {answered}"
                assert answered[0] in (400, 413, 431, 501, 505), name
                assert sent == b"", f"{name}: something reached the child"
        for name, template in LEGAL.items():
            assert (await through(template, "alpha"))[0] == [200, 200], name
            answered, sent = await through(template, "tape")
            assert answered == [200, 200], name
            # Another strict reader sees one request, with the body that was meant…
            ((target, body),) = requests_in(sent)
            assert (target, json.loads(body)["content"]) == (b"/tokenize", "hello"), name
            assert sent.lower().count(b"\r\ncontent-length:") == 1, name
            assert b"transfer-encoding" not in sent.lower().partition(b"\r\n\r\n")[0], name
            # … and so does llama-server, of the very same bytes.
            assert statuses(await told(sent, path=child)) == [200], name


async def test_the_cases_bite(lab: Lab) -> None:
    """Without lswap in between, llama-server takes some for two requests that are refused here."""
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        ask = {"model": "alpha", "content": "hello"}
        assert (await lswap.client.post("/tokenize", json=ask)).status_code == 200
        child = await socket_of(lswap, "alpha")
        understood = {
            name: statuses(await told(render(template, "alpha") + HIDDEN, path=child))
            for name, template in REFUSED.items()
        }
    assert [200, 200] in understood.values(), understood
