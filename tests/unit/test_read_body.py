"""No request has more decoded of it at once than the event loop can spare the time for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from llamaswap_py.api import read_body, routes
from llamaswap_py.api.body import decode
from llamaswap_py.api.large_body import STEP
from llamaswap_py.config.api_keys import KeyRing
from llamaswap_py.proxy.messages import Body
from llamaswap_py.units import KIB, MIB
from tests.proxy.harness import connected
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, answer, make_config
from tests.unit.test_plain_requests import key, request, staged, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio
CONTROL = (
    *("/v1/streams/lookup", "/models/load", "/models/unload", "/models", "/api/show", "/api/pull"),
    *("/lswap/v1/reservations", "/lswap/v1/reservations/x/heartbeat"),
    "/lswap/v1/models/alpha/load",
)
EMPTY = b'{"a":[' + b"[]," * MIB + b"[]]}"
MEMBERS = b"{" + b'"a":1,' * MIB + b'"b":1}'
CHAT = {"model": "alpha", "messages": [{"role": "user", "content": "hello, you"}] * 20_000}
FILTERED = "models: {alpha: {model: /a.gguf, request: {set: {seed: 1}}}}"


def values(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{")))


@pytest.mark.parametrize("path", CONTROL)
@pytest.mark.parametrize("framed", [True, False])
async def test_a_request_that_is_no_models_is_small(path: str, framed: bool) -> None:
    exchange = FakeExchange("POST", path, b'{"pad":"' + b"x" * MIB + b'"}')
    if not framed:
        exchange.head.content_length = None
    await answer(exchange)
    assert exchange.status == 413
    assert str(MIB).encode() in exchange.answer


def paths() -> list[tuple[str, str]]:
    """Return a path of each route, with its methods that may have a body."""
    every = {**routes.ROUTES, **{f"{a}alpha{b}": there for a, b, there in routes.PATTERNS}}
    methods = ("POST", "DELETE", routes.ANY)
    found = [(one, path) for path, there in every.items() for one in there if one in methods]
    return [("POST" if method == routes.ANY else method, path) for method, path in found]


@pytest.mark.parametrize(("method", "path"), paths())
@pytest.mark.parametrize("body", [EMPTY, MEMBERS], ids=["values", "members"])
async def test_no_route_decodes_much_at_once(
    method: str, path: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = [0]
    decode = msgspec.json.decode

    def spy(text: Any, **more: Any) -> Any:
        decoded.append(values(bytes(text)))
        return decode(text, **more)

    monkeypatch.setattr(msgspec.json, "decode", spy)
    exchange = FakeExchange(method, path, body)
    exchange.head.content_length = None
    supervisor = FakeSupervisor(make_config(FILTERED))
    await answer(exchange, supervisor)
    assert max(decoded) <= read_body.VALUES


async def test_many_members_are_not_read_for_a_model() -> None:
    exchange = FakeExchange("POST", "/v1/chat/completions", MEMBERS)
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.error["code"] == "body_too_large"
    assert str(read_body.SKIPPED) in exchange.error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_long_talk_is_answered(path: str) -> None:
    exchange = FakeExchange("POST", path, json.dumps(CHAT).encode())
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.status == 200


async def test_no_more_is_kept_of_a_request_that_is_translated_than_is_decoded() -> None:
    text = json.dumps({"model": "alpha", "messages": [{"content": "x" * 150}] * 120_000}).encode()
    kept: list[int] = []

    class InPieces(FakeExchange):
        async def read_body(self, limit: int, scan: Callable[[bytes], int] | None = None) -> Body:
            assert scan is not None
            starts = range(0, len(self.body), STEP)
            kept.extend(scan(self.body[start : start + STEP]) for start in starts)
            return Body.of(self.body)

    exchange = InPieces("POST", "/api/chat", text)
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.status == 413
    assert f"{read_body.TEXTS} bytes, images aside" in exchange.json["error"]
    assert len(text) > read_body.TEXTS + 2 * STEP
    assert kept[-1] == max(kept) <= read_body.TEXTS + STEP


async def test_numbers_for_a_model_pass() -> None:
    ask = {"model": "alpha", "input": list(range(500_000))}
    exchange = FakeExchange("POST", "/v1/embeddings", json.dumps(ask).encode())
    exchange.head.content_length = None
    await answer(exchange)
    assert exchange.status == 200


async def test_a_large_body_counts_where_a_small_one_does_not(short_dir: Path) -> None:
    async with staged(short_dir) as stage, connected(stage.endpoint) as client:
        stage.app.services.access.replace(KeyRing([key("few", max_in_flight=1)]))
        who = "Authorization: Bearer few\r\n"
        async with connected(stage.endpoint) as other:
            await other.send(request({"model": "alpha"}, headers=who)[:-1])
            await until(lambda: any(one.counted for one in stage.app.services.calls.values()))
            small = request({"conversation_ids": []}, "/v1/streams/lookup", who)
            assert (await client.ask(small)).status == 200
            large = request({"x": "x" * 65 * KIB}, "/v1/streams/lookup", who)
            assert (await client.ask(large)).status == 429
        await until(lambda: not stage.app.services.calls)


def test_numbers_with_exponents_cost_what_others_do() -> None:
    """The decoder takes 15 microseconds for each, unless it is told to ask Python for them."""
    many = b"[" + b",".join([b"1.5e300"] * 20_000) + b"]"
    few = b"[" + b",".join([b'{"a":"b"}'] * 20_000) + b"]"
    assert decode(many)[0] == 1.5e300

    def cost(text: bytes) -> float:
        began = time.process_time()
        decode(text)
        return time.process_time() - began

    assert min(cost(many) for _ in range(3)) < 10 * min(cost(few) for _ in range(3))
