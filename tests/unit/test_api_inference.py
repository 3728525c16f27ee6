"""A request for a child: names, leases, retries, errors."""

from __future__ import annotations

from typing import Any

import pytest

from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import RelayOutcome, RelayResult, render_request
from tests.unit.api_fakes import (
    DONE,
    FakeExchange,
    FakeSupervisor,
    answer,
    ask,
    header_lines,
    make_config,
)

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
UNREACHABLE = RelayResult(RelayOutcome.UNREACHABLE, error="no socket")
DIED = RelayResult(RelayOutcome.DIED_BEFORE_HEAD, error="it went away")
GARBAGE = RelayResult(RelayOutcome.BAD_UPSTREAM, error="not HTTP")
CUT = RelayResult(RelayOutcome.CUT)
CUT_MIDSTREAM = RelayResult(RelayOutcome.CUT, started=True, status=200)
DIED_MIDSTREAM = RelayResult(RelayOutcome.DIED_MIDSTREAM, started=True, status=200)


async def chat(
    body: bytes = b'{"model":"alpha"}', path: str = CHAT, *results: RelayResult
) -> tuple[FakeExchange, FakeSupervisor]:
    supervisor = FakeSupervisor()
    exchange = FakeExchange("POST", path, body, results=results or (DONE,))
    return await answer(exchange, supervisor), supervisor


@pytest.mark.parametrize(
    ("target", "body", "preset"),
    [
        (CHAT, b'{"model":"alpha"}', "alpha"),
        (CHAT, b'{"model":"first"}', "alpha"),
        (CHAT, b'{"model":"org/beta:8b"}', "org/beta:8b"),
        (CHAT + "?model=alpha", b"{}", "alpha"),
        (CHAT + "?model=alpha", b'{"model":"org/beta:8b"}', "org/beta:8b"),
        ("/slots/0?action=save&model=org%2Fbeta:8b", b"", "org/beta:8b"),
        ("/lora-adapters?model=alpha", b'[{"id":0}]', "alpha"),
    ],
)
async def test_names(target: str, body: bytes, preset: str) -> None:
    exchange, supervisor = await chat(body, target)
    assert exchange.status == 200
    assert supervisor.asked[0]["preset"] == preset
    assert exchange.headers["x-lswap-model"] == preset


async def test_no_name() -> None:
    exchange, supervisor = await chat(b"{}")
    assert exchange.error["code"] == "model_missing"
    assert "default_model" in exchange.error["message"]
    assert supervisor.asked == []
    config = make_config("default_model: alpha\nmodels: {alpha: {model: /a.gguf}}")
    exchange = await ask("POST", CHAT, b"{}", supervisor=FakeSupervisor(config))
    assert exchange.headers["x-lswap-model"] == "alpha"


async def test_unknown_name() -> None:
    exchange, _ = await chat(b'{"model":"alpa"}')
    assert exchange.status == 404
    assert exchange.error["code"] == "model_not_found"
    assert "did you mean alpha?" in exchange.error["message"]
    assert exchange.error["param"] == "model"
    exchange, _ = await chat(b'{"model":"' + b"z" * 1000 + b'"}')
    assert len(exchange.error["message"]) < 200


async def test_a_body_that_is_not_json_never_reaches_a_model() -> None:
    exchange, supervisor = await chat(b'{"model": alpha}')
    assert exchange.status == 400
    assert exchange.error["code"] == "bad_json"
    assert supervisor.asked == []


async def test_limits() -> None:
    config = make_config("limits: {body: 1KiB, upload: 2KiB}\nmodels: {alpha: {model: /a.gguf}}")
    supervisor = FakeSupervisor(config)
    exchange = await ask("POST", CHAT, b"x" * 1500, supervisor=supervisor)
    assert exchange.status == 413
    assert exchange.error["code"] == "body_too_large"
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nalpha\r\n--b--' + b" " * 1500
    )
    kind = {"content-type": "multipart/form-data; boundary=b"}
    exchange = await ask("POST", "/v1/audio/transcriptions", form, kind, supervisor)
    assert exchange.status == 200


async def test_what_the_child_gets() -> None:
    headers = {
        "content-type": "application/json",
        "authorization": "Bearer k",
        "x-api-key": "k",
        "x-conversation-id": "c",
        "x-own": "1",
        "x-request-id": "of-the-client",
        "connection": "keep-alive",
    }
    body = b'{"model": "alpha",   "odd" : 1}'
    exchange = await ask("POST", CHAT + "?a=%20b", body, headers)
    (sent,) = exchange.relayed
    assert (sent.method, sent.target, sent.body.join()) == ("POST", CHAT + "?a=%20b", body)
    lines = header_lines(render_request(sent).partition(b"\r\n")[2])
    ids = [value for name, value in lines if name == b"x-request-id"]
    assert ids == [exchange.headers["x-request-id"].encode()] == [b"of-the-client"]
    names = {name for name, _ in lines}
    assert {b"content-type", b"x-own", b"x-forwarded-for"} <= names
    assert not names & {b"authorization", b"x-api-key", b"x-conversation-id", b"connection"}


async def test_headers_of_an_answer() -> None:
    exchange, _ = await chat()
    assert exchange.headers["x-lswap-queue-ms"] == "12"
    assert exchange.headers["x-lswap-load-ms"] == "34"
    config = make_config("models: {größe: {model: /a.gguf}}")
    exchange = await ask(
        "POST", CHAT, '{"model":"größe"}'.encode(), supervisor=FakeSupervisor(config)
    )
    assert exchange.headers["x-lswap-model"] == "gr%C3%B6%C3%9Fe"


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        (CHAT, True),
        ("/v1/embeddings", True),
        ("/v1/messages", True),
        ("/tokenize", False),
        ("/v1/messages/count_tokens", False),
        ("/props", False),
    ],
)
async def test_slots(path: str, slot: bool) -> None:
    _, supervisor = await chat(b'{"model":"alpha"}', path)
    assert supervisor.asked[0]["slot"] is slot


@pytest.mark.parametrize(
    ("method", "query", "config", "autoload"),
    [
        ("GET", "", "", False),
        ("GET", "&autoload=true", "", True),
        ("GET", "&autoload=1", "autoload: false", True),
        ("POST", "", "", True),
        ("POST", "&autoload=false", "", False),
        ("POST", "", "autoload: false", False),
    ],
)
async def test_gets_load_nothing_unless_told(
    method: str, query: str, config: str, autoload: bool
) -> None:
    supervisor = FakeSupervisor(make_config(f"{config}\nmodels: {{alpha: {{model: /a.gguf}}}}"))
    await ask(method, f"/props?model=alpha{query}", supervisor=supervisor)
    assert supervisor.asked[0]["autoload"] is autoload


async def test_props_without_a_model_is_the_routers() -> None:
    exchange = await ask("GET", "/props?autoload=false")
    assert exchange.json["role"] == "router"
    assert exchange.json["models_autoload"] is True


# --- what goes wrong upstream


@pytest.mark.parametrize("first", [UNREACHABLE, DIED])
async def test_a_child_that_died_unseen_is_asked_again_once(first: RelayResult) -> None:
    exchange, supervisor = await chat(b'{"model":"alpha"}', CHAT, first, DONE)
    assert exchange.status == 200
    assert [lease.outcome for lease in supervisor.leases] == ["upstream_error", "ok"]
    assert [asked["since"] for asked in supervisor.asked] == [None, 5.0]
    assert len({asked["request_id"] for asked in supervisor.asked}) == 1
    exchange, supervisor = await chat(b'{"model":"alpha"}', CHAT, first, DIED)
    assert exchange.status == 502
    assert exchange.error["code"] == "upstream_failed"
    assert "it went away" in exchange.error["message"]


async def test_what_changes_a_child_is_not_sent_twice() -> None:
    body = b'[{"id":0,"scale":1}]'
    exchange, supervisor = await chat(body, "/lora-adapters?model=alpha", DIED)
    assert exchange.status == 502
    assert len(supervisor.asked) == 1
    exchange, _ = await chat(body, "/lora-adapters?model=alpha", UNREACHABLE, DONE)
    assert exchange.status == 200


async def test_garbage_is_not_retried() -> None:
    exchange, supervisor = await chat(b'{"model":"alpha"}', CHAT, GARBAGE)
    assert exchange.status == 502
    assert supervisor.leases[0].outcome == "upstream_error"


async def test_a_cut_before_the_first_byte_goes_back_to_its_place() -> None:
    exchange, supervisor = await chat(b'{"model":"alpha"}', CHAT, CUT, CUT, DIED, CUT, DONE)
    assert exchange.status == 200
    assert [asked["since"] for asked in supervisor.asked] == [None, 5.0, 5.0, 5.0, 5.0]
    assert [lease.outcome for lease in supervisor.leases][:3] == ["cut", "cut", "upstream_error"]


@pytest.mark.parametrize(
    ("result", "outcome"), [(CUT_MIDSTREAM, "cut"), (DIED_MIDSTREAM, "upstream_error")]
)
async def test_midstream_ends_are_final(result: RelayResult, outcome: str) -> None:
    _, supervisor = await chat(b'{"model":"alpha"}', CHAT, result)
    assert [lease.outcome for lease in supervisor.leases] == [outcome]


@pytest.mark.parametrize(
    ("path", "start"), [(CHAT, b'data: {"error"'), ("/v1/messages", b"event: error\ndata: ")]
)
async def test_a_revoked_lease_cuts_with_the_familys_event(path: str, start: bytes) -> None:
    supervisor = FakeSupervisor()
    exchange = FakeExchange("POST", path, b'{"model":"alpha"}', results=[CUT_MIDSTREAM])

    def revoke() -> None:
        callback = supervisor.leases[0].revoke
        assert callback is not None
        callback("drain deadline")

    exchange.during_relay = revoke
    await answer(exchange, supervisor)
    ((event, reason),) = exchange.cuts
    assert reason == "drain deadline"
    assert event.startswith(start)
    assert b"others waited for its memory" in event
    assert exchange.error_event is not None
    assert exchange.error_event("it died").startswith(start)


async def test_a_second_lease_that_is_refused_is_the_answer() -> None:
    class Fickle(FakeSupervisor):
        def lease(self, preset: str, **asked: Any) -> Any:
            if self.leases:
                self.refuse = ApiError("model_failed", "it crashed", details={"exit_code": 1})
            return super().lease(preset, **asked)

    exchange = FakeExchange("POST", CHAT, b'{"model":"alpha"}', results=[DIED])
    await answer(exchange, Fickle())
    assert exchange.status == 503
    assert exchange.error["exit_code"] == 1
    assert exchange.headers["x-lswap-queue-ms"] == "12"


# --- /upstream


@pytest.mark.parametrize(
    ("path", "preset", "target"),
    [
        ("/upstream/alpha/props", "alpha", "/props"),
        ("/upstream/first/a%20b?c=d", "alpha", "/a%20b?c=d"),
        ("/upstream/org/beta:8b/v1/models", "org/beta:8b", "/v1/models"),
        ("/upstream/org%2Fbeta%3A8b/", "org/beta:8b", "/"),
        ("/upstream/alpha", "alpha", "/"),
    ],
)
async def test_upstream_paths(path: str, preset: str, target: str) -> None:
    supervisor = FakeSupervisor()
    exchange = await ask("GET", path, supervisor=supervisor)
    assert exchange.relayed[0].target == target
    assert supervisor.asked[0]["preset"] == preset
    assert supervisor.asked[0]["autoload"] is False


async def test_upstream_inference_counts_as_such() -> None:
    supervisor = FakeSupervisor()
    exchange = FakeExchange(
        "POST", "/upstream/alpha/v1/messages", b'{"model":"other"}', results=[DIED, DONE]
    )
    await answer(exchange, supervisor)
    assert exchange.status == 200
    assert [asked["slot"] for asked in supervisor.asked] == [True, True]
    assert supervisor.asked[0]["preset"] == "alpha"


async def test_upstream_of_nobody() -> None:
    exchange = await ask("GET", "/upstream/nobody/x")
    assert exchange.status == 404
    assert exchange.error["code"] == "model_not_found"


async def test_websockets_are_tunnelled_below_upstream_only() -> None:
    headers = {"upgrade": "websocket", "connection": "upgrade"}
    exchange = await ask("GET", "/upstream/alpha/ws", headers=headers)
    assert exchange.tunnelled
    exchange = await ask("GET", "/props?model=alpha", headers=headers)
    assert not exchange.tunnelled
