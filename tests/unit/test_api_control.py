"""Lists of models, state, load, unload, logs."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from llamaswap_py.api import App
from llamaswap_py.api.model_lists import preset_ini
from llamaswap_py.children.logs import ChildLog
from llamaswap_py.errors import ApiError
from llamaswap_py.snapshot import Snapshot
from tests.unit.api_fakes import (
    FakeExchange,
    FakeSupervisor,
    ask,
    failure_view,
    instance_view,
    make_snapshot,
    model_view,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/models?reload=1"])
async def test_the_list_has_both_shapes(path: str) -> None:
    picture = make_snapshot(
        [
            model_view("alpha", state="ready", aliases=("first",), metadata={"note": "mine"}),
            model_view("beta", state="failed", failure=failure_view(exit_code=7)),
            model_view("gamma", state="loading"),
        ],
        [instance_view("alpha"), instance_view("gamma", progress=0.25, stage="text_model")],
    )
    exchange = await ask("GET", path, supervisor=FakeSupervisor(picture=picture))
    assert exchange.json["object"] == "list"
    alpha, first, beta, gamma = exchange.json["data"]
    assert first == alpha | {"id": "first", "aliases": [], "root": "alpha"}
    assert alpha["id"] == "alpha"
    assert (alpha["object"], alpha["owned_by"], alpha["created"]) == (
        "model",
        "llamacpp",
        1700000000,
    )
    assert alpha["aliases"] == ["first"]
    assert alpha["status"]["value"] == "loaded"
    assert "failed" not in alpha["status"]
    assert alpha["meta"] == {"n_ctx": 4096}
    assert alpha["metadata"] == {"note": "mine"}
    assert (alpha["source"], alpha["can_remove"], alpha["tags"]) == ("preset", False, [])
    assert beta["status"] == {
        "value": "unloaded",
        "args": ["--ctx-size", "4096", "--jinja"],
        "preset": "[beta]\nctx-size = 4096\njinja = true\n",
        "failed": True,
        "exit_code": 7,
    }
    assert "meta" not in beta
    assert gamma["status"]["value"] == "loading"
    assert gamma["status"]["progress"]["value"] == 0.25


def test_preset_ini_keeps_negative_numbers() -> None:
    assert preset_ini(model_view("a", args=("--seed", "-1", "--flag"))) == (
        "[a]\nseed = -1\nflag = true\n"
    )


async def test_one_model() -> None:
    for path in ("/v1/models/org/beta:8b", "/v1/models/org%2Fbeta%3A8b"):
        exchange = await ask("GET", path)
        assert exchange.json["id"] == "org/beta:8b"
    exchange = await ask("GET", "/v1/models/first")
    assert (exchange.json["id"], exchange.json["root"]) == ("first", "alpha")
    exchange = await ask("GET", "/v1/models/none")
    assert exchange.status == 404


async def test_health() -> None:
    for path in ("/health", "/v1/health", "/livez", "/readyz"):
        exchange = await ask("GET", path)
        assert (exchange.status, exchange.json) == (200, {"status": "ok"})
    stopping = FakeSupervisor(picture=make_snapshot([], state="draining"))
    assert (await ask("GET", "/health", supervisor=stopping)).status == 200
    exchange = await ask("GET", "/readyz", supervisor=stopping)
    assert exchange.status == 503
    assert "retry-after" in exchange.headers


async def test_state_is_the_snapshot() -> None:
    supervisor = FakeSupervisor()
    exchange = await ask("GET", "/lswap/v1/state", supervisor=supervisor)
    assert msgspec.json.decode(exchange.answer, type=Snapshot) == supervisor.snapshot()


async def test_decisions() -> None:
    exchange = await ask("GET", "/lswap/v1/decisions?model=first&limit=7")
    assert exchange.json["decisions"][0]["preset"] == "alpha"
    assert exchange.json["decisions"][0]["reason"] == "limit 7"
    assert (await ask("GET", "/lswap/v1/decisions?model=none")).status == 404
    exchange = await ask("GET", "/lswap/v1/decisions?limit=many")
    assert (exchange.status, exchange.error["param"]) == (400, "limit")


async def test_load() -> None:
    supervisor = FakeSupervisor()
    exchange = await ask("POST", "/lswap/v1/models/org/beta:8b/load", supervisor=supervisor)
    assert exchange.status == 200
    assert exchange.json["state"] == "ready"
    exchange = await ask("POST", "/lswap/v1/models/first/load?wait=false", supervisor=supervisor)
    assert exchange.status == 202
    assert supervisor.loaded == ["org/beta:8b", "alpha, later"]
    supervisor.refuse = ApiError("model_failed", "no such file")
    exchange = await ask("POST", "/lswap/v1/models/alpha/load", supervisor=supervisor)
    assert exchange.status == 503
    assert "no such file" in exchange.error["message"]


async def test_load_with_arguments_has_to_be_allowed() -> None:
    supervisor = FakeSupervisor()
    path = "/lswap/v1/models/alpha/load"
    exchange = await ask("POST", path, b'{"args":{"ctx-size":1}}', supervisor=supervisor)
    assert exchange.status == 403
    assert "allow_args: true" in exchange.error["message"]
    exchange = await ask("POST", path, b"[", supervisor=supervisor)
    assert exchange.status == 400
    assert supervisor.loaded == []
    exchange = await ask("POST", path, b" {} ", supervisor=supervisor)
    assert exchange.status == 200


async def test_unload() -> None:
    supervisor = FakeSupervisor()
    exchange = await ask("POST", "/lswap/v1/models/alpha/unload?force=true", supervisor=supervisor)
    assert (exchange.status, exchange.json["state"], exchange.json["unloaded"]) == (
        200,
        "unloaded",
        True,
    )
    exchange = await ask("POST", "/lswap/v1/models/alpha/unload?wait=0", supervisor=supervisor)
    assert exchange.status == 202
    exchange = await ask("POST", "/lswap/v1/models/org/beta:8b/unload", supervisor=supervisor)
    assert exchange.json["unloaded"] is False
    assert "problem" not in exchange.json
    assert supervisor.unloads == [("alpha", True), ("alpha", False), ("org/beta:8b", False)]


@pytest.mark.parametrize("state", ["unloaded", "stopping"])
async def test_an_unload_that_did_not_go_well_says_so(state: str) -> None:
    supervisor = FakeSupervisor(unload_problem="stop_cmd failed: exit code 3")
    supervisor.picture = make_snapshot([model_view("alpha", state=state)])
    exchange = await ask("POST", "/lswap/v1/models/alpha/unload", supervisor=supervisor)
    assert exchange.status == 200
    assert exchange.json["state"] == state
    assert exchange.json["problem"] == "stop_cmd failed: exit code 3"


async def test_gets_change_nothing() -> None:
    supervisor = FakeSupervisor()
    for path in ("/lswap/v1/models/alpha/load", "/lswap/v1/models/alpha/unload"):
        assert (await ask("GET", path, supervisor=supervisor)).status == 405
    assert supervisor.loaded == []
    assert supervisor.unloads == []


async def test_logs() -> None:
    log = ChildLog()
    log.extend(["one", "two", "three ü"])
    supervisor = FakeSupervisor(log=log)
    exchange = await ask("GET", "/lswap/v1/logs/alpha?tail=2", supervisor=supervisor)
    assert exchange.answer.decode() == "two\nthree ü\n"
    assert exchange.headers["content-type"] == "text/plain; charset=utf-8"
    exchange = await ask("GET", "/lswap/v1/logs/alpha?follow=true")
    assert (exchange.status, exchange.answer) == (200, b"")


@pytest.mark.parametrize("ended_by", ["the log", "the stop of lswap"])
async def test_followed_logs(ended_by: str) -> None:
    log = ChildLog()
    log.extend(["old", "recent"])
    app = App(cast("Any", FakeSupervisor(log=log)))
    exchange = FakeExchange("GET", "/lswap/v1/logs/alpha?tail=1&follow=true")
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(app.handle(cast("Any", exchange)))
        await exchange.written.wait()
        assert exchange.answer == b"recent\n"
        for text in ("new", "newer"):
            exchange.written.clear()
            log.append(text)
            await exchange.written.wait()
        if ended_by == "the log":
            log.close()
        else:
            app.services.closing.set()
    assert exchange.answer == b"recent\nnew\nnewer\n"


async def test_index() -> None:
    exchange = await ask("GET", "/", headers={"accept": "text/html,*/*"})
    assert b"<title>lswap</title>" in exchange.answer
    exchange = await ask("GET", "/")
    assert exchange.answer == b"Ollama is running"
