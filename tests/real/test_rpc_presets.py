"""Models on the devices of a real ggml-rpc-server: alone on it, and without it when it is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests import device_engine
from tests.real.answers import chat_body
from tests.real.device_lab import rpc_server, unused_port

if TYPE_CHECKING:
    from tests.real.device_lab import RpcServer
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

KEYS: Final[dict[str, Any]] = {"memory": {"devices": "auto"}}


def lent(lab: Lab, engine: str, name: str, endpoint: str) -> dict[str, Any]:
    """Return a preset whose layers are on the device of an RPC server."""
    path = lab.write_model(f"{name}-lent", lab.sentence(name), layers=8, pad_bytes=4 << 20)
    args = {"rpc": endpoint, "threads": 1, "load-mode": "none", "ctx-size": 256, "parallel": 1}
    return {"model": str(path), "engine": engine, "device": "RPC0", "args": args}


async def refusal(lswap: Lswap, model: str) -> dict[str, Any]:
    answer = await lswap.client.post("/v1/chat/completions", json=chat_body(model))
    assert answer.status_code == 503, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_two_models_take_turns_on_one_server(
    lab: Lab, rpc_engine: str, rpc_servers: tuple[RpcServer, RpcServer]
) -> None:
    """There is memory for both, but the server lets a second client wait for ever."""
    endpoint = rpc_servers[0].endpoint
    models = {name: lent(lab, rpc_engine, name, endpoint) for name in ("alpha", "beta")}
    async with lab.lswap(models, **KEYS) as lswap:
        for name in ("alpha", "beta", "alpha"):
            assert await lswap.chat(name) == lab.sentence(name)
        await lswap.says(f"the RPC server {endpoint} serves one at a time")
        assert (await lswap.model("beta")).state == "unloaded"


async def test_no_process_waits_for_a_server_that_a_model_uses(
    lab: Lab, rpc_engine: str, rpc_servers: tuple[RpcServer, RpcServer]
) -> None:
    """Neither a list of devices nor a dry run of a model that comes later."""
    endpoint = rpc_servers[0].endpoint
    models = {"alpha": lent(lab, rpc_engine, "alpha", endpoint)}
    async with lab.lswap(models, **KEYS) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        models["beta"] = lent(lab, rpc_engine, "beta", endpoint)
        lab.write_config(models, **KEYS)
        answer = await lswap.client.post("/lswap/v1/reload")
        assert answer.status_code == 200, answer.text
        assert await lswap.chat("beta") == lab.sentence("beta")
        assert (await lswap.model("alpha")).state == "unloaded"
        assert not [line for line in lswap.log if "did not end within" in line]


async def test_a_request_follows_its_alias_when_the_server_dies(
    lab: Lab, rpc_engine: str, rpc_servers: tuple[RpcServer, RpcServer]
) -> None:
    server = rpc_servers[0]
    models = {
        "far": lent(lab, rpc_engine, "far", server.endpoint),
        "near": lab.preset("near"),
        "idle": lab.preset("idle"),
    }
    aliases = {"best": {"first": ["far", "near"]}}
    async with lab.lswap(models, aliases=aliases, **KEYS) as lswap:
        assert await lswap.chat("idle") == lab.sentence("idle")
        assert await lswap.chat("best") == lab.sentence("far")
        server.kill()
        assert await lswap.chat("best") == lab.sentence("near")
        failure = (await lswap.model("far")).failure
        assert failure is not None
        assert failure.kind == "rpc_lost"
        assert server.endpoint in failure.summary
        error = await refusal(lswap, "far")
        assert (error["code"], error["failure"]) == ("model_failed", "rpc_lost")
        assert server.endpoint in error["message"]
        assert (await lswap.model("idle")).state == "ready"


async def test_a_server_that_is_not_there_at_the_start_is_used_once_it_is(
    lab: Lab, rpc_engine: str
) -> None:
    port = unused_port()
    endpoint = f"127.0.0.1:{port}"
    models = {"far": lent(lab, rpc_engine, "far", endpoint), "near": lab.preset("near")}
    aliases = {"best": {"first": ["far", "near"]}}
    async with lab.lswap(models, aliases=aliases, **KEYS) as lswap:
        error = await refusal(lswap, "far")
        assert (error["code"], error["failure"]) == ("model_failed", "rpc_lost")
        assert f"the RPC server {endpoint} does not answer (Connection refused)" in error["message"]
        assert await lswap.chat("best") == lab.sentence("near")
        program = device_engine.program("ggml-rpc-server")
        with rpc_server(program, lab.folder, port):
            await lswap.says("changed far")
            assert await lswap.chat("far") == lab.sentence("far")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"rpc": "a:1,b:2,c:3"}, "hangs with more than 2 RPC servers, and `rpc` names 3"),
        ({"rpc": "a:1", "spec-type": "draft-mtp"}, "crashes with `spec-type: draft-mtp`"),
    ],
)
async def test_what_is_known_not_to_work_is_refused(
    lab: Lab, rpc_engine: str, args: dict[str, str], said: str
) -> None:
    preset = {**lab.preset("alpha"), "engine": rpc_engine, "args": args}
    checked = await lab.cli("check", str(lab.write_config({"alpha": preset}, **KEYS)))
    assert checked.code != 0
    assert said in checked.out
