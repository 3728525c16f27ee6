"""What a path means, who may call, and how refusals look."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llamaswap_py.api.auth import parse_host, parse_origin
from llamaswap_py.api.errors import Family, error_event, render_wire_error
from llamaswap_py.api.routes import PATTERNS, ROUTES, look_up, pick
from llamaswap_py.errors import API_CODES, ApiError
from tests.proxy.test_requests import parse
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, answer, ask, make_config, make_head

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "captured"),
    [
        ("POST", "/v1/chat/completions", ""),
        ("POST", "/chat/completions", ""),
        ("POST", "/v1/messages/count_tokens", ""),
        ("POST", "/v1/rerank", ""),
        ("POST", "/apply-template", ""),
        ("GET", "/slots", ""),
        ("POST", "/slots/3", "3"),
        ("GET", "/v1/stream/a::b", "a::b"),
        ("DELETE", "/v1/stream/a%3A%3Ab", "a%3A%3Ab"),
        ("GET", "/v1/models/org/beta:8b", "org/beta:8b"),
        ("DELETE", "/upstream/org/beta/x/y", "org/beta/x/y"),
        ("POST", "/lswap/v1/models/org/beta/load", "org/beta"),
        ("GET", "/lswap/v1/logs/org%2Fbeta", "org%2Fbeta"),
        ("HEAD", "/v1/models", ""),
    ],
)
def test_known_paths(method: str, path: str, captured: str) -> None:
    methods, found = look_up(path)
    assert methods is not None
    assert pick(methods, method) is not None
    assert found == captured


@pytest.mark.parametrize(
    "path", ["/v1/chat", "/upstream/", "/v1/models/", "/lswap/v1/models//load"]
)
def test_unknown_paths(path: str) -> None:
    assert look_up(path) == (None, "")


@pytest.mark.parametrize("path", ["/v1/v1/messages", "/v1/api/chat"])
async def test_a_base_url_with_v1_too_many_is_named(path: str) -> None:
    exchange = await ask("POST", path, b"{}")
    assert exchange.status == 404
    assert "remove a /v1 from" in exchange.answer.decode()


async def test_every_route_answers_json_and_never_an_internal_error() -> None:
    endless = ("/models/sse", "/lswap/v1/events")
    paths = [(path, methods) for path, methods in ROUTES.items() if path not in endless]
    paths += [(f"{start}alpha{end}", methods) for start, end, methods in PATTERNS]
    for path, methods in paths:
        for method in methods:
            exchange = await ask(method, path, b"{}" if method == "POST" else b"")
            assert exchange.status, (method, path)
            assert exchange.status != 500, (method, path, exchange.answer)
            assert "x-request-id" in exchange.headers


async def test_404_names_the_path_in_the_shape_of_its_family() -> None:
    exchange = await ask("GET", "/nope")
    assert exchange.status == 404
    assert exchange.error["code"] == "not_found"
    assert "/nope" in exchange.error["message"]
    exchange = await ask("GET", "/v1/messages/nope")
    assert exchange.json["type"] == "error"
    assert exchange.error["type"] == "not_found_error"


async def test_405_names_the_methods() -> None:
    exchange = await ask("GET", "/v1/chat/completions")
    assert exchange.status == 405
    assert exchange.headers["allow"] == "POST"
    assert exchange.error["code"] == "method_not_allowed"
    assert exchange.headers["x-request-id"]


# --- who may call


HOSTS = [
    ("localhost:8080", "localhost"),
    ("localhost", "localhost"),
    ("LOCALHOST.", "localhost"),
    ("GpuBox.LAN:80", "gpubox.lan"),
    ("my_box:8080", "my_box"),
    ("127.0.0.1:65535", "127.0.0.1"),
    ("127.0.0.1.", "127.0.0.1"),
    ("[::1]:8080", "::1"),
    ("[0:0:0:0:0:0:0:1]", "::1"),
    ("[FE80::1]", "fe80::1"),
]
NO_HOSTS = [
    *("", " ", ":", ":8080", ".", "..", "localhost..", ".localhost", "a..localhost", "null://"),
    *("localhost:", "localhost:x", "localhost:80x", "localhost:-1", "localhost:+80", "localhost: "),
    *("localhost:65536", "localhost:000080", "localhost:80:80", " localhost", "localhost\t"),
    *("[::1", "::1", "[::1]x", "[::1]:", "x[::1]", "[]", "[::g]", "[::1%lo]", "[::1%25lo]"),
    *("[1.2.3.4]", "127.0.0.1:x@evil", "1.2.3.4@evil.example", "me@localhost", "a:b@127.0.0.1:80"),
    *("127.0.0.1/", "127.0.0.1/x", "127.0.0.1?x", "127.0.0.1#x", "127.0.0.1\\x", "localhost,evil"),
    *("localhost evil", "-localhost", "localhost-", "l\xf6calhost", "%6cocalhost"),
]


@pytest.mark.parametrize(("value", "name"), [*HOSTS, *((value, None) for value in NO_HOSTS)])
def test_what_a_host_header_names(value: str, name: str | None) -> None:
    """One grammar for both headers: what is not a Host is not the host of an Origin either."""
    data = value.encode("latin-1")
    assert parse_host(data) == name
    for scheme in (b"http", b"HTTPS", b"tauri", b"moz-extension"):
        assert parse_origin(scheme + b"://" + data) == name
    assert parse_origin(data) is None


@pytest.mark.parametrize(
    "value",
    [
        *("null", "", "http", "http:", "http://", "://localhost", "http:/localhost", "localhost"),
        *("1http://localhost", "h ttp://localhost", "http://localhost/", "blob:http://localhost"),
        *("http://http://localhost", "javascript://localhost://", "http://localhost, http://evil"),
    ],
)
def test_what_is_not_an_origin(value: str) -> None:
    assert parse_origin(value.encode()) is None


@pytest.mark.parametrize("value", [one for one in NO_HOSTS if one.strip() == one])
async def test_no_odd_header_lets_a_page_in(value: str) -> None:
    """As Host, as Origin, and as both: what is not a host makes no page one of this machine."""
    for headers in (
        {"host": value},
        {"host": "127.0.0.1", "origin": f"http://{value}"},
        {"host": "127.0.0.1", "origin": value},
        {"host": value, "origin": f"http://{value}"},
        {"host": "http://127.0.0.1", "origin": "http://evil.example"},
        {"host": "https://1.2.3.4", "origin": "https://1.2.3.4"},
    ):
        exchange = await ask("POST", "/lswap/v1/models/alpha/load", headers=headers)
        assert exchange.status == 403, headers


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8080"},
        {"host": "[::1]"},
        {"host": "192.168.1.7:8080", "origin": "http://localhost:3000"},
        {"host": "192.168.1.7:8080", "origin": "http://192.168.1.7:8080"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://[::1]:3000"},
        {"host": "lswap.localhost"},
        {"host": "gpubox.lan:8080"},
    ],
)
async def test_own_names_may_call(headers: dict[str, str]) -> None:
    config = make_config("allowed_hosts: [gpubox.lan]\nmodels: {alpha: {model: /a.gguf}}")
    for _ in range(2):
        exchange = await ask("GET", "/health", headers=headers, supervisor=FakeSupervisor(config))
        assert exchange.status == 200


@pytest.mark.parametrize(
    ("headers", "shown"),
    [
        ({"host": "evil.example"}, "allowed_hosts: [evil.example]"),
        ({"origin": "https://evil.example"}, 'cors: {origins: ["https://evil.example"]}'),
        ({"origin": "null"}, "'null' are not trusted"),
        ({"origin": "http://93.184.216.34"}, 'cors: {origins: ["http://93.184.216.34"]}'),
        (
            {"host": "127.0.0.1:8080", "origin": "http://192.168.1.7:8080"},
            'cors: {origins: ["http://192.168.1.7:8080"]}',
        ),
        ({"host": "127.0.0.1.evil.example"}, "allowed_hosts: [127.0.0.1.evil.example]"),
        ({"host": "localhost@evil.example"}, "'localhost@evil.example' is not HOST or HOST:PORT"),
    ],
)
async def test_foreign_names_are_refused_with_the_line_to_add(
    headers: dict[str, str], shown: str
) -> None:
    supervisor = FakeSupervisor()
    exchange = await ask(
        "POST", "/lswap/v1/models/alpha/load", headers=headers, supervisor=supervisor
    )
    assert exchange.status == 403
    assert exchange.error["code"] == "forbidden"
    assert shown in exchange.error["message"]
    assert supervisor.loaded == []


async def test_unix_clients_need_no_host() -> None:
    exchange = await ask("GET", "/health", headers={"host": "whatever.example"}, peer="unix")
    assert exchange.status == 200


# --- request ids, errors


async def test_request_ids() -> None:
    exchange = await ask("GET", "/health", headers={"x-request-id": "abc-1"})
    assert exchange.headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "x" * 200, "ü"):
        exchange = await ask("GET", "/health", headers={"x-request-id": bad})
        assert exchange.headers["x-request-id"] not in ("", bad)


async def test_two_open_requests_never_share_an_id() -> None:
    seen: list[str] = []

    class Nested(FakeSupervisor):
        async def load(self, preset: str) -> None:
            inner = FakeExchange("GET", "/health", headers={"x-request-id": "same"})
            await app.handle(inner)  # type: ignore[arg-type]
            seen.append(inner.headers["x-request-id"])

    from llamaswap_py.api import App

    app = App(Nested())  # type: ignore[arg-type]
    outer = FakeExchange("POST", "/lswap/v1/models/alpha/load", headers={"x-request-id": "same"})
    await app.handle(outer)  # type: ignore[arg-type]
    assert outer.headers["x-request-id"] == "same"
    assert len(seen) == 1
    assert seen[0].startswith("same.")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/lswap/v1/state"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/messages"),
        ("POST", "/api/chat"),
        ("POST", "/models/load"),
    ],
)
async def test_a_bug_is_answered_without_a_traceback(
    caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    class Broken(FakeSupervisor):
        def snapshot(self) -> Any:
            raise RuntimeError("secret detail")

        @property
        def names(self) -> Any:
            raise RuntimeError("secret detail")

    body = b'{"model":"alpha","messages":[{"role":"user","content":"hi"}]}'
    with caplog.at_level(logging.ERROR, "lswap"):
        exchange = await ask(method, path, body, supervisor=Broken())
    assert exchange.status == 500
    told = exchange.json if path == "/api/chat" else exchange.error
    assert told["code"] == (500 if path == "/models/load" else "internal")
    assert b"secret" not in exchange.answer
    assert b"Traceback" not in exchange.answer
    assert exchange.headers["x-request-id"].encode() in exchange.answer
    assert "secret detail" in caplog.text


async def test_an_error_after_the_answer_began_is_the_wires_business() -> None:
    exchange = FakeExchange("GET", "/health")
    exchange.respond(200)
    with pytest.raises(AssertionError, match="answered twice"):
        await answer(exchange)


@pytest.mark.parametrize("code", sorted(API_CODES))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_every_code_in_every_shape(code: str, path: str) -> None:
    error = ApiError(code, "what", remedy="do", details={"state": "loading", "position": 3})
    supervisor = FakeSupervisor(refuse=error)
    body = b'{"model":"alpha","messages":[{"role":"user","content":"hi"}]}'
    exchange = await ask("POST", path, body, supervisor=supervisor)
    assert exchange.status == API_CODES[code][0]
    told = exchange.json if path == "/api/chat" else exchange.error
    assert (exchange.error if path == "/api/chat" else told["message"]) == "what - do"
    assert told["code"] == code
    assert told["state"] == "loading"
    assert told["position"] == 3
    assert exchange.headers["x-lswap-model"] == "alpha"
    assert int(exchange.headers["x-lswap-queue-ms"]) >= 0
    assert ("retry-after" in exchange.headers) == (exchange.status in (429, 503))
    if path == "/v1/messages":
        assert exchange.json["type"] == "error"
        assert exchange.json["request_id"] == exchange.headers["x-request-id"]


async def test_retry_after_is_rounded_up() -> None:
    supervisor = FakeSupervisor(refuse=ApiError("model_failed", "no", retry_after=2.1))
    exchange = await ask("POST", "/v1/embeddings", b'{"model":"alpha"}', supervisor=supervisor)
    assert exchange.headers["retry-after"] == "3"


def test_error_events() -> None:
    error = ApiError("upstream_failed", "gone")
    assert error_event(error, Family.OPENAI, "r").startswith(b'data: {"error":{"message":"gone"')
    event = error_event(error, Family.ANTHROPIC, "r")
    assert event.startswith(b'event: error\ndata: {"type":"error","error":{"type":"api_error"')
    line = error_event(error, Family.OLLAMA, "r")
    assert line.startswith(b'{"error":"gone')
    assert line.endswith(b"}\n")
    for family in (Family.OPENAI, Family.ANTHROPIC):
        text = error_event(error, family, "r")
        assert text.endswith(b"\n\n")
        assert b"\n\n" not in text[:-2]


@pytest.mark.parametrize("status", [400, 408, 413, 431, 505])
def test_wire_errors(status: int) -> None:
    headers, body = render_wire_error(status, "no", None)
    assert (b"content-type", b"application/json") in headers
    assert b'"message":"no"' in body
    _, body = render_wire_error(status, "no", make_head("POST", "/v1/messages"))
    assert body.startswith(b'{"type":"error"')


async def test_access_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lswap.access"):
        await ask("POST", "/v1/chat/completions?key=secret", b'{"model":"first","x":"private"}')
        await ask("GET", "/nope")
    first, second = (record.getMessage() for record in caplog.records)
    assert "POST /v1/chat/completions model=alpha#1 status=200 queue=12ms load=34ms" in first
    assert first.endswith(" ok")
    assert second.endswith(" not_found")
    assert "secret" not in caplog.text
    assert "private" not in caplog.text


CODED = [
    ("POST", "/v1/chat/completions", lambda error: error["error"]["message"]),
    ("POST", "/v1/audio/transcriptions", lambda error: error["error"]["message"]),
    ("POST", "/v1/messages", lambda error: error["error"]["message"]),
    ("POST", "/api/chat", lambda error: error["error"]),
    ("POST", "/models/load", lambda error: error["error"]["message"]),
    ("POST", "/lswap/v1/models/alpha/load", lambda error: error["error"]["message"]),
]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, zstd"])
@pytest.mark.parametrize(("method", "path", "message_of"), CODED)
async def test_a_compressed_body_is_refused_by_the_name_of_its_header(
    method: str, path: str, message_of: Any, coding: str
) -> None:
    supervisor = FakeSupervisor()
    exchange = FakeExchange(method, path, b"\x1f\x8b\x08", {"content-encoding": coding})
    exchange.head.content_length = 3
    await answer(exchange, supervisor)
    assert exchange.status == 415
    assert exchange.headers["accept-encoding"] == "identity"
    assert f"Content-Encoding: {coding}" in message_of(exchange.json)
    assert not supervisor.asked


async def test_a_body_that_is_not_compressed_or_not_read_here_passes() -> None:
    supervisor = FakeSupervisor()
    body = b'{"model":"alpha"}'
    for path, coding, data in (
        ("/v1/completions", "identity", body),
        ("/upstream/alpha/v1/completions", "gzip", b"\x1f\x8b\x08"),
    ):
        exchange = FakeExchange("POST", path, data, {"content-encoding": coding})
        exchange.head.content_length = len(data)
        assert (await answer(exchange, supervisor)).relayed
        assert exchange.relayed[0].body.join() == data
    exchange = FakeExchange("GET", "/v1/models", headers={"content-encoding": "gzip"})
    assert (await answer(exchange)).status == 200


async def test_options_of_the_whole_server() -> None:
    exchange = await ask("OPTIONS", "*")
    assert (exchange.status, exchange.answer) == (204, b"")
    assert {"GET", "HEAD", "POST", "DELETE", "OPTIONS"} == set(
        exchange.headers["allow"].split(", ")
    )
    foreign = await ask("OPTIONS", "*", headers={"host": "evil.example"})
    assert foreign.status == 403


@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "PURGE", "REPORT", "OPTIONS", "TRACE"])
async def test_upstream_takes_every_method(method: str) -> None:
    exchange = await ask(method, "/upstream/alpha/dav/x")
    assert (exchange.relayed[0].method, exchange.relayed[0].target) == (method, "/dav/x")
    assert (await ask(method, "/v1/models")).headers["allow"] == "GET, HEAD"


async def test_the_host_rule_judges_the_host_of_an_absolute_target() -> None:
    sink, _ = parse(b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    exchange = FakeExchange("GET", "/v1/models")
    exchange.head = sink.heads[0]
    assert (await answer(exchange)).status == 403
