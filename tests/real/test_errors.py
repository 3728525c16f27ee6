"""Every error that a client can be told, provoked for real, in the shape of each family."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.errors import API_CODES
from tests.real.answers import PATIENCE, chat_body
from tests.real.test_api_keys import write_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx

    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
OLLAMA, ROUTER = "/api/chat", "/models/load"
TALKING = (OPENAI, ANTHROPIC, OLLAMA)
ANY = (*TALKING, ROUTER)
QUEUED = {"queue_full", "queue_timeout", "memory_full"}
"""Codes that tell where in the queue a request stands."""


@dataclass(frozen=True)
class Case:
    """How to be told `code`: one request, with what is different from a good one for alpha."""

    code: str
    paths: tuple[str, ...] = TALKING
    model: str | None = "alpha"
    method: str = "POST"
    below: str = ""
    """Added to the path."""
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


AT_ONCE = [
    Case("bad_json", ANY, content=b'{"model": "alpha", '),
    Case("bad_request", headers={"x-lswap-when-full": "whenever"}),
    Case("bad_request", ("/lswap/v1/decisions",), method="GET", below="?limit=many"),
    Case("model_missing", model=None),
    Case("model_not_loaded", below="?autoload=false", model="crash"),
    Case("model_too_large", model="huge"),
    Case("forbidden", ANY, headers={"host": "evil.example"}),
    Case("forbidden", ANY, headers={"origin": "https://evil.example"}),
    Case("model_not_found", model="alpa"),
    Case("not_found", below="/nowhere"),
    Case("not_found", ("/lswap/v1/requests/nobody/cancel", "/models/nowhere")),
    Case("method_not_allowed", ANY, method="DELETE"),
    Case("body_too_large", ANY, content=b'{"model":"' + b"x" * 70_000 + b'"}'),
    Case("unsupported_encoding", ANY, headers={"content-encoding": "gzip"}),
    Case("not_implemented", ("/api/create", "/api/copy", "/api/push")),
    Case("model_failed", model="crash"),
    Case("queue_timeout", model="stuck", headers={"x-lswap-max-wait": "0.05"}),
    Case(
        "reservation_refused", ("/lswap/v1/reservations",), content=b'{"memory": {"host": "1TiB"}}'
    ),
    Case("upstream_failed", ("/v1/embeddings", ANTHROPIC, OLLAMA), model="mute"),
]
ELSEWHERE = {
    "unauthorized": "test_keys",
    "too_many_requests": "test_keys",
    "would_deadlock": "test_beside_another_request",
    "memory_full": "test_beside_another_request",
    "queue_full": "test_waiting_requests_that_are_ended",
    "cancelled": "test_waiting_requests_that_are_ended",
    "unloaded": "test_waiting_requests_that_are_ended",
    "draining": "test_waiting_requests_when_lswap_stops",
    "model_loading": "tests/real/test_reads.py: test_of_a_model_that_loads",
    "stopped": "tests/real/test_streams.py: test_what_waits_for_a_load_can_be_stopped",
    "bad_config": "test_a_reload_of_a_wrong_file",
    "too_many_connections": "tests/real/test_connections.py: the connection that gave way",
    "bodies_full": "tests/proxy/test_bodies.py: test_what_does_not_fit_is_refused_and_given_back",
    "internal": "tests/unit/test_api_routes.py: only a bug brings it about",
}


def test_the_table_covers_every_code() -> None:
    assert {case.code for case in AT_ONCE} | set(ELSEWHERE) == set(API_CODES)
    text = Path(__file__).read_text(encoding="utf-8")
    for where in ELSEWHERE.values():
        assert f"async def {where}(" in text or where.startswith("tests/")


def models_of(lab: Lab) -> dict[str, Preset]:
    """Return models that fail in every way."""
    gate = {"FAKE_LOAD_GATE": str(lab.folder / "never")}
    return {
        "alpha": lab.preset("alpha", size="40MiB"),
        "huge": lab.preset("huge", size="10GiB"),
        "long": lab.endless("long", size="40MiB", layers=32),
        "stuck": lab.fake("stuck", size="40MiB", env=gate),
        "crash": lab.fake("crash", size="10MiB", env={"FAKE_CRASH": "loading:exit:3"}),
        "big": lab.fake("big", size="160MiB"),
        **{
            f"broken{path}": lab.fake(f"broken{number}", size="20MiB", env={"FAKE_CUT_AFTER": "1"})
            for number, path in enumerate(TALKING)
        },
        "mute": lab.fake("mute", size="20MiB", env={"FAKE_MUTE": "1"}),
        "stalled": lab.fake(
            "stalled", size="20MiB", env={"FAKE_LOAD_SECONDS": "100"}, load_stall="500ms"
        ),
    }


async def ask(
    lswap: Lswap, path: str, model: str | None = "alpha", **request: Any
) -> httpx.Response:
    method = request.pop("method", "POST")
    stream = request.pop("stream", False)
    if request.get("content") is None:
        body = chat_body(model or "", stream=stream, max_tokens=8)
        if model is None:
            del body["model"]
        request["json"] = body | {"input": "hi"}
        request.pop("content", None)
    return await lswap.client.request(method, path, **request)


def check(answer: httpx.Response, path: str, code: str) -> dict[str, Any]:
    """Check an answer that must be the error `code`, and return its members."""
    status, kind = API_CODES[code]
    where = f"{path} {code}: {answer.status_code} {answer.text}"
    assert answer.status_code == status, where
    assert answer.headers["content-type"] == "application/json", where
    assert answer.headers["x-request-id"], where
    waits = answer.headers.get("retry-after")
    assert (waits is not None) is (status in (429, 503)), where
    assert waits is None or int(waits) >= 1, where
    assert (code == "method_not_allowed") is ("allow" in answer.headers), where
    return check_shape(answer.json(), path, code, kind)


def check_shape(said: Any, path: str, code: str, kind: str) -> dict[str, Any]:
    """Check that `said` has the shape of the path's family, and return the error's members."""
    assert "Traceback" not in json.dumps(said)
    if path.startswith("/api/"):
        error, message = said, said["error"]
    else:
        error, message = said["error"], said["error"]["message"]
    assert isinstance(message, str), said
    assert message, said
    if path.startswith("/models"):
        assert set(said) == {"error"}
        assert isinstance(error["code"], int)
    else:
        assert error["code"] == code, said
    if path.startswith(ANTHROPIC):
        assert (said["type"], bool(said["request_id"])) == ("error", True)
        assert error["type"].endswith("_error") or error["type"] == "request_too_large"
    elif not path.startswith("/api/"):
        assert error["type"] == kind, said
    if not path.startswith(("/api/", "/models", ANTHROPIC)):
        assert "param" in error
    if code in QUEUED:
        assert isinstance(error["state"], str)
        assert isinstance(error["position"], int)
        assert error["eta_seconds"] is None or error["eta_seconds"] >= 0
    if code == "model_failed":
        assert error["state"] == "failed"
        assert isinstance(error["failure"], str)
    result: dict[str, Any] = error
    return result


@asynccontextmanager
async def serving(lab: Lab, **keys: Any) -> AsyncIterator[Lswap]:
    """Run a server of models that fail; it may never have a bug to tell of."""
    policy = {"queue": {"limit": 2}}
    async with lab.lswap(models_of(lab), policy=policy, **keys) as lswap:
        yield lswap
        log = "".join(lswap.log)
        assert "Traceback" not in log
        assert "failed inside lswap" not in log


async def test_errors_that_come_at_once(lab: Lab) -> None:
    async with serving(lab, limits={"body": "64KiB"}) as lswap:
        for case in AT_ONCE:
            for path in case.paths:
                request = {"method": case.method, "content": case.content}
                target = path + case.below
                answer = await ask(lswap, target, case.model, headers=case.headers, **request)
                error = check(answer, path, case.code)
                assert case.code != "model_failed" or error["exit_code"] == 3
        assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_keys(lab: Lab) -> None:
    async with serving(lab, keys=write_keys(lab.folder), listen="0.0.0.0:0") as lswap:
        for path in ANY:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
                check(await ask(lswap, path, headers=headers), path, "unauthorized")
        ann = {"authorization": "Bearer ann"}
        for path in TALKING:
            check(await ask(lswap, path, "long", headers=ann), path, "forbidden")
        check(await ask(lswap, "/models/unload", headers=ann), "/models/unload", "forbidden")
        async with lswap.client.stream("GET", "/models/sse", headers=ann) as open_one:
            assert open_one.status_code == 200
            for path in ANY:
                check(await ask(lswap, path, headers=ann), path, "too_many_requests")


async def test_beside_another_request(lab: Lab) -> None:
    async with serving(lab) as lswap, lswap.stream("long", max_tokens=1_000_000) as stream:
        await stream.read(1)
        parent = {"x-lswap-parent": stream.response.headers["x-request-id"]}
        for path in TALKING:
            check(await ask(lswap, path, "big", headers=parent), path, "would_deadlock")
            refuse = {"x-lswap-when-full": "refuse"}
            check(await ask(lswap, path, "big", headers=refuse), path, "memory_full")


async def cancel(lswap: Lswap, id: str) -> None:
    await lswap.client.post(f"/lswap/v1/requests/{id}/cancel")


async def unload(lswap: Lswap, id: str) -> None:
    await lswap.client.post("/lswap/v1/models/stuck/unload", params={"force": "true"})


@pytest.mark.parametrize(("end", "code"), [(cancel, "cancelled"), (unload, "unloaded")])
async def test_waiting_requests_that_are_ended(
    lab: Lab, end: Callable[[Lswap, str], Awaitable[None]], code: str
) -> None:
    """And those that come while the queue is full."""
    async with serving(lab) as lswap:
        for path in TALKING:
            ids = {"x-request-id": "one"}, {"x-request-id": "two"}
            waiting = [asyncio.create_task(ask(lswap, path, "stuck", headers=id)) for id in ids]
            await lswap.until(lambda state: waiters(state, "stuck") == 2)
            for each in TALKING:
                check(await ask(lswap, each, "stuck"), each, "queue_full")
            for id in ids:
                await end(lswap, id["x-request-id"])
            for answer in await gathered(waiting):
                check(answer, path, code)
                assert answer.headers["x-lswap-model"] == "stuck" or code == "cancelled"


async def test_waiting_requests_when_lswap_stops(lab: Lab) -> None:
    models = models_of(lab)
    models["stuck"]["stop_timeout"] = "1s"
    async with lab.lswap(models) as lswap:
        waiting = [asyncio.create_task(ask(lswap, path, "stuck")) for path in TALKING]
        await lswap.until(lambda state: waiters(state, "stuck") == 3)
        lswap.signal(signal.SIGTERM)
        for path, answer in zip(TALKING, await gathered(waiting), strict=True):
            check(answer, path, "draining")


async def test_a_reload_of_a_wrong_file(lab: Lab) -> None:
    async with serving(lab) as lswap:
        lswap.config.write_text("models: {alpha: {modle: x}}")
        answer = await lswap.client.post("/lswap/v1/reload")
        check(answer, "/lswap/v1/reload", "bad_config")


# What fails once a stream has begun


@pytest.mark.parametrize("code", ["queue_timeout", "cancelled", "unloaded", "model_failed"])
async def test_the_last_event_of_a_stream_that_waits(lab: Lab, code: str) -> None:
    """Ollama's streams do not begin before the child's."""
    async with serving(lab, waiting={"notice": "10ms"}) as lswap:
        for path in (OPENAI, ANTHROPIC):
            wait = {"x-lswap-max-wait": "0.5"} if code == "queue_timeout" else {}
            model = "stalled" if code == "model_failed" else "stuck"
            headers = {"x-request-id": f"mine{path}".replace("/", "-"), **wait}
            body = chat_body(model, stream=True, max_tokens=8)
            async with lswap.client.stream("POST", path, json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    assert code == "model_failed"  # it had failed for the client before
                    await answer.aread()
                    check(answer, path, code)
                    continue
                if code == "cancelled":
                    await cancel(lswap, headers["x-request-id"])
                elif code == "unloaded":
                    await unload(lswap, "")
                text = (await answer.aread()).decode()
            assert text.startswith(": lswap")
            check_last_event(text, path, code)


def check_last_event(text: str, path: str, code: str) -> None:
    """Check that a stream's last event is the error, and nothing follows."""
    assert text.endswith("\n\n"), text
    last = text.rstrip("\n").rpartition("\n\n")[2].split("\n")
    assert last[:-1] == (["event: error"] if path == ANTHROPIC else [])
    check_shape(json.loads(last[-1].removeprefix("data: ")), path, code, API_CODES[code][1])


async def test_the_last_event_of_a_stream_whose_child_dies(lab: Lab) -> None:
    async with serving(lab) as lswap:
        for path in TALKING:
            answer = await ask(lswap, path, f"broken{path}", stream=True)
            assert answer.status_code == 200, answer.text
            if path == OLLAMA:
                last = json.loads(answer.text.splitlines()[-1])
                check_shape(last, path, "upstream_failed", "")
            else:
                check_last_event(answer.text, path, "upstream_failed")


async def test_the_last_event_of_a_stream_that_is_cut(lab: Lab) -> None:
    async with serving(lab) as lswap:
        for path in TALKING:
            body = chat_body("long", stream=True, max_tokens=1_000_000)
            body["options"] = {"num_predict": 1_000_000}
            async with lswap.client.stream("POST", path, json=body) as answer:
                assert answer.status_code == 200
                text = ""
                async with asyncio.timeout(PATIENCE):
                    async for piece in answer.aiter_text():
                        if not text:
                            params = {"force": "true", "wait": "false"}
                            await lswap.client.post("/lswap/v1/models/long/unload", params=params)
                        text += piece
            if path == OLLAMA:
                check_shape(json.loads(text.splitlines()[-1]), path, "unloaded", "")
            else:
                check_last_event(text, path, "unloaded")
            await lswap.until_state("long", "unloaded")


def waiters(state: Any, name: str) -> int:
    return sum(one.waiting for one in state.models if one.id == name)


async def gathered(tasks: list[asyncio.Task[httpx.Response]]) -> list[httpx.Response]:
    async with asyncio.timeout(PATIENCE):
        return [await task for task in tasks]
