"""Protocols on mock transports: wherever the bytes are split, cut off or revoked, framing holds.

The transports raise when they are used after their end, as uvloop's do.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.proxy import Exchange, RelayOutcome, RelayResult, UpstreamPool, UpstreamRequest
from llamaswap_py.proxy.backpressure import Outbox
from llamaswap_py.proxy.bodies import Bodies
from llamaswap_py.proxy.client import ClientConnection
from llamaswap_py.proxy.head_cache import KnownRequests
from llamaswap_py.proxy.messages import LAST_CHUNK, WireLimits, chunk
from llamaswap_py.proxy.places import Places
from llamaswap_py.proxy.upstream import UpstreamConnection

from .harness import JSON_ANSWER, SSE_HEAD, error_event, sse, wire_error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
STREAM = INTERIM + SSE_HEAD + sse("one") + sse("two words") + sse("[DONE]") + b"0\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def _one_second() -> Iterator[None]:
    """Answers that are compared have one date."""
    date = b"date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamaswap_py.proxy.exchange.date_line", lambda: date)
        yield


class MockTransport(asyncio.Transport):
    """Records what is written, and refuses any use after its end."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended: str | None = None
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._check()
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        self._check()
        return 100_000

    def write_eof(self) -> None:
        self._check()

    def pause_reading(self) -> None:
        self._check()
        self.reading = False

    def resume_reading(self) -> None:
        self._check()
        self.reading = True

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = self.ended or "aborted"

    def _check(self) -> None:
        if self.ended is not None:
            raise RuntimeError("unable to perform operation; the handler is closed")


class StubServer:
    """The least a ClientConnection needs."""

    limits = WireLimits()
    on_wire_error = staticmethod(wire_error)

    def __init__(self, handler: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        self.handler = handler
        self.outbox = Outbox(asyncio.get_running_loop())
        self.places = Places()
        self.bodies = Bodies()
        self.heads = KnownRequests()
        self.tasks: list[asyncio.Task[None]] = []

    def adopt(
        self, connection: ClientConnection, life: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(life))
        return self.tasks[-1]


class OnePool(UpstreamPool):
    """Hands out one connection on a mock transport."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = UpstreamConnection(Endpoint(), self)
        self.transport = MockTransport()
        self.connection.connection_made(self.transport)

    async def connect(
        self, endpoint: Endpoint, *, wanted: Callable[[], bool] = lambda: True
    ) -> UpstreamConnection:
        return self.connection


@dataclass
class Run:
    """One relay over mock transports."""

    client: ClientConnection
    client_transport: MockTransport
    pool: OnePool
    exchanges: list[Exchange]
    results: list[RelayResult] = field(default_factory=list)

    @property
    def upstream(self) -> UpstreamConnection:
        return self.pool.connection


async def turn() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def relayed(request: bytes, act: Callable[[Run], Coroutine[Any, Any, None]]) -> Run:
    """Send `request`, let `act` play the child, and end both connections."""

    async def main() -> Run:
        exchanges: list[Exchange] = []
        results: list[RelayResult] = []
        pool = OnePool()

        async def handler(exchange: Exchange) -> None:
            exchanges.append(exchange)
            upstream_request = UpstreamRequest("GET", "/", [])
            result = await exchange.relay(
                Endpoint(), upstream_request, pool=pool, error_event=error_event
            )
            results.append(result)
            if not exchange.response_started:
                exchange.respond(502)

        server = StubServer(handler)
        client = ClientConnection(server)  # type: ignore[arg-type]
        transport = MockTransport()
        client.connection_made(transport)
        client.data_received(request)
        await turn()
        run = Run(client, transport, pool, exchanges, results)
        await act(run)
        await turn()
        client.connection_lost(None)
        await asyncio.wait(server.tasks)
        return run

    return asyncio.run(main())


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in pairwise([0, *sorted(cuts), len(data)]) if a < b]


def feed(run: Run, pieces: list[bytes]) -> None:
    """Deliver the child's bytes, as long as its connection is open."""
    for piece in pieces:
        if run.pool.transport.ended is None:
            run.upstream.data_received(piece)


def parsed(data: bytes) -> tuple[bytes, bool]:
    """Return the body of the client's bytes, and whether it is whole."""

    class Sink:
        body = b""
        whole = False

        def on_body(self, piece: bytes) -> None:
            self.body += piece

        def on_message_complete(self) -> None:
            self.whole = True

    sink = Sink()
    httptools.HttpResponseParser(sink).feed_data(data)
    return sink.body, sink.whole


WAYS = ("refused", "read", "later")
"""What the handler does with a body: nothing, read it, or wait for something else first."""
FRAMINGS = ("known", "counted", "chunked", "expected")
"""A head that came before, one that is parsed, a chunked body, and one that waits to be asked."""


@dataclass(frozen=True)
class Sent:
    """A request as it is sent."""

    way: str
    body: bytes
    framing: str = "known"
    number: int = 0

    @property
    def may_end_the_connection(self) -> bool:
        """Whether nobody knows how much would still come when it is refused."""
        return self.way == "refused" and self.framing in ("chunked", "expected")

    def head(self) -> bytes:
        head = f"POST /{self.way} HTTP/1.1\r\nHost: a\r\n"
        if self.framing == "expected":
            head += "Expect: 100-continue\r\n"
        if self.framing != "known":
            head += f"X-Own: {self.number}\r\n"
        if self.framing == "chunked":
            return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode()

    def rest(self) -> bytes:
        if self.framing != "chunked":
            return self.body
        middle = len(self.body) // 2
        halves = (self.body[:middle], self.body[middle:])
        return b"".join(chunk(half) for half in halves if half) + LAST_CHUNK


async def act_as_told(exchange: Exchange) -> None:
    way = exchange.head.path.removeprefix("/")
    if way == "later":
        await asyncio.sleep(0)
    if way != "refused":
        await exchange.read_body(100)
    exchange.respond(200, f"<{way}>".encode())


KNOWN = [Sent(way, b"{}") for way in WAYS]
"""The heads that are known once these were sent."""


def deliver(sent: list[Sent], pieces: list[bytes], turns: list[int], *, half_close: bool) -> Played:
    """Send what makes the heads of KNOWN known, then `pieces`, each as soon as it is read."""

    async def main() -> Played:
        server = StubServer(act_as_told)
        client = ClientConnection(server)  # type: ignore[arg-type]
        transport = MockTransport()
        client.connection_made(transport)
        loop = asyncio.get_running_loop()

        async def pass_turns(most: int) -> None:
            for _ in range(most):
                await asyncio.sleep(0)

        def half_close_now() -> None:
            if transport.ended is None and not client.eof_received():
                transport.abort()

        whole = [one.head() + one.rest() for one in KNOWN]
        for piece, more in zip(whole + pieces, [9] * len(KNOWN) + turns, strict=True):
            for _ in range(99):
                if transport.reading:
                    break
                await asyncio.sleep(0)
            assert transport.reading, "what was sent is never read"
            if transport.ended is None:
                loop.call_soon(client.data_received, piece)  # as a loop does, in no task
                await asyncio.sleep(0)
            await pass_turns(more)
        if half_close:
            loop.call_soon(half_close_now)
        await pass_turns(20 * (len(sent) + 1))
        ended = transport.ended
        client.connection_lost(None)
        await asyncio.wait(server.tasks)
        return Played(transport.written, ended, reads=transport.reading)

    return asyncio.run(main())


@dataclass(frozen=True)
class Played:
    """What became of a connection: what its client got, how it was ended, whether it was read."""

    written: bytes
    ended: str | None
    reads: bool

    @property
    def answered(self) -> list[str]:
        return [way.decode() for way in re.findall(rb"<(\w+)>", self.written)]

    @property
    def statuses(self) -> set[bytes]:
        return set(re.findall(rb"HTTP/1.1 (\d+)", self.written))


@pytest.fixture
def _little_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so little be enough that the bodies and requests of these tests pause the input."""
    monkeypatch.setattr("llamaswap_py.proxy.incoming._HELD_LIMIT", 90)
    monkeypatch.setattr("llamaswap_py.proxy.incoming._STEP", 70)
    monkeypatch.setattr("llamaswap_py.proxy.intake._HIGH_WATER", 30)
    monkeypatch.setattr("llamaswap_py.proxy.client.client_is_gone", lambda _: False)


@pytest.mark.usefixtures("_little_may_wait")
@pytest.mark.parametrize("half_close", [False, True], ids=["stays", "half-closes"])
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_every_request_is_answered_wherever_the_bytes_are_split(
    half_close: bool, data: st.DataObject
) -> None:
    bodies = st.sampled_from((b"", b"{}", b"x" * 50))
    kinds = st.tuples(st.sampled_from(WAYS), bodies, st.sampled_from(FRAMINGS))
    drawn = data.draw(st.lists(kinds, min_size=1, max_size=8))
    sent = [Sent(*kind, number) for number, kind in enumerate(drawn)]
    stream, telling = b"", [0]
    for one in sent:
        rest = one.rest()
        stream += one.head() + rest
        telling += [len(stream) - len(rest), len(stream) - len(rest) // 2, len(stream)]
    cut = st.sampled_from(telling) | st.integers(0, len(stream))
    pieces = split(stream, data.draw(st.lists(cut, max_size=12)))
    turns = data.draw(st.lists(st.integers(0, 9), min_size=len(pieces), max_size=len(pieces)))

    played = deliver(sent, pieces, turns, half_close=half_close)
    expected = [*KNOWN, *sent]
    answered = len(played.answered)
    assert played.answered == [one.way for one in expected[:answered]]
    assert played.statuses <= {b"100", b"200"}
    if answered < len(expected):
        assert expected[answered - 1].may_end_the_connection
        assert played.written.rpartition(b"HTTP/1.1 200 OK")[2].count(b"connection: close") == 1
    elif not half_close:
        assert played.reads


@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_a_request_that_comes_with_the_end_of_a_body_is_answered_next(framing: str) -> None:
    """Whoever waited for the body goes on in the call that brings both."""
    first, second = Sent("read", b"x" * 50, framing, 1), Sent("later", b"{}")
    cut = len(first.head()) + 10
    stream = first.head() + first.rest() + second.head() + second.rest()
    third = Sent("refused", b"{}")
    pieces = [stream[:cut], stream[cut:], third.head() + third.rest()]
    played = deliver([first, second, third], pieces, [9, 9, 9], half_close=False)
    assert played.answered[len(KNOWN) :] == ["read", "later", "refused"]


@pytest.mark.usefixtures("_little_may_wait")
def test_a_body_that_its_client_ended_early_is_refused_although_it_was_held_back() -> None:
    first, second = Sent("later", b"{}"), Sent("read", b"x" * 50)
    stream = first.head() + first.rest() + second.head() + b"x" * 10
    played = deliver([first, second], [stream], [0], half_close=True)
    assert played.answered[len(KNOWN) :] == ["later"]
    assert played.statuses == {b"200", b"400"}


@pytest.mark.parametrize("request_head", [GET, GET_1_0], ids=["1.1", "1.0"])
@pytest.mark.parametrize("response", [STREAM, INTERIM + JSON_ANSWER], ids=["stream", "json"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_splits_never_matter(request_head: bytes, response: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(response)), max_size=20))

    async def whole(run: Run) -> None:
        feed(run, [response])

    async def pieces(run: Run) -> None:
        feed(run, split(response, cuts))

    expected, got = relayed(request_head, whole), relayed(request_head, pieces)
    assert got.client_transport.written == expected.client_transport.written
    assert b"one" in expected.client_transport.written or b'{"a":1}' in got.client_transport.written
    assert got.results[0].outcome is RelayOutcome.COMPLETE
    assert got.pool.idle == expected.pool.idle


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(STREAM) - 1), cuts=st.lists(st.integers(0, len(STREAM)), max_size=5))
def test_a_death_at_any_byte_is_told_or_seen(at: int, cuts: list[int]) -> None:
    async def act(run: Run) -> None:
        feed(run, split(STREAM[:at], [cut for cut in cuts if cut < at]))
        run.upstream.connection_lost(None)

    run = relayed(GET, act)
    outcome = run.results[0].outcome
    if at < len(INTERIM + SSE_HEAD):
        assert outcome is RelayOutcome.DIED_BEFORE_HEAD
        assert run.client_transport.written.startswith(b"HTTP/1.1 502")
        return
    assert outcome is RelayOutcome.DIED_MIDSTREAM
    body, whole = parsed(run.client_transport.written)
    if run.client_transport.ended == "aborted" and not whole:
        return
    assert whole
    assert b'\n\ndata: {"error": ' in b"\n\n" + body
    assert body.endswith(b'"}\n\n')


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(STREAM) - 1))
def test_a_cut_at_any_byte_keeps_the_framing(at: int) -> None:
    event = b"data: cut\n\n"

    async def act(run: Run) -> None:
        feed(run, [STREAM[:at]])
        run.exchanges[0].cut(event, "unloaded")
        for index in range(at, len(STREAM)):
            feed(run, [STREAM[index : index + 1]])

    run = relayed(GET, act)
    if at < len(INTERIM + SSE_HEAD):
        assert (run.results[0].outcome, run.results[0].started) == (RelayOutcome.CUT, False)
        return
    body, whole = parsed(run.client_transport.written)
    assert whole
    complete = run.results[0].outcome is RelayOutcome.COMPLETE
    assert body.endswith(b"[DONE]\n\n" if complete else b"\n\n" + event) or body == event
    assert run.pool.transport.ended == "aborted"


def test_nothing_touches_a_transport_after_its_end() -> None:
    """A client goes, and the child's bytes come before any task runs."""

    async def act(run: Run) -> None:
        feed(run, [SSE_HEAD + sse("one")])
        run.client_transport.abort()
        run.client.connection_lost(None)
        assert run.pool.transport.ended == "aborted"
        run.upstream.data_received(sse("two"))
        run.client.pause_writing()
        run.client.resume_writing()
        run.client.write(b"x")
        run.client.pause_input()
        run.upstream.connection_lost(None)

    assert b"two" not in relayed(GET, act).client_transport.written


def test_back_pressure_reaches_the_child_and_is_lifted_for_the_next_use() -> None:
    async def act(run: Run) -> None:
        head, _, body = JSON_ANSWER.partition(b"{")
        feed(run, [head])
        run.client.pause_writing()
        assert not run.pool.transport.reading
        run.client.resume_writing()
        assert run.pool.transport.reading
        run.client.pause_writing()
        feed(run, [b"{" + body])
        assert run.pool.transport.reading
        assert run.pool.idle == 1

    relayed(GET, act)


def test_a_client_that_is_already_slow_pauses_the_child_from_the_start() -> None:
    async def act(run: Run) -> None:
        feed(run, [JSON_ANSWER])
        await turn()
        run.client.pause_writing()
        run.client.data_received(GET)
        await turn()
        assert not run.pool.transport.reading

    relayed(GET, act)
