"""Bad input of every kind: a clear error that names the place and the remedy, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.answers import PATIENCE, chat_body, error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


# A command line that cannot work


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [", "lswap.yaml:"),
        ("", "the file is empty"),
        ("- a\n- b\n", "not a mapping"),
        ("modles:\n  a: {model: a.gguf}\n", "did you mean models"),
        ("models:\n  a: {model: a.gguf, tll: 5m}\n", "did you mean ttl"),
        ("models:\n  a: {model: a.gguf, ttl: 5}\n", "lswap.yaml:2"),
        ("models:\n  a: {model: a.gguf}\n  a: {model: b.gguf}\n", "lswap.yaml:3"),
        ("listen: 0.0.0.0:8080\nmodels:\n  a: {model: a.gguf}\n", "allow_unauthenticated"),
        ("models:\n", "there are no models"),
    ],
)
async def test_configurations_that_are_refused(lab: Lab, text: str, says: str) -> None:
    path = lab.folder / "lswap.yaml"
    path.write_text(text)
    result = await lab.cli("up", str(path))
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err


async def test_no_file(lab: Lab) -> None:
    result = await lab.cli("up", str(lab.folder / "nowhere.yaml"))
    assert result.code == 2
    assert "nowhere.yaml" in result.err
    assert "Traceback" not in result.err


async def test_a_port_in_use(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = lab.write_config({"alpha": lab.preset("alpha")}, listen=address)
        result = await lab.cli("up", str(config))
    assert result.code == 1
    assert address in result.err
    assert "in use" in result.err
    assert "Traceback" not in result.err


async def test_a_socket_path_in_use(lab: Lab) -> None:
    """A living listener is never pushed aside."""
    path = lab.folder / "lswap.sock"
    async with lab.lswap({"alpha": lab.preset("alpha")}, listen=f"unix:{path}") as lswap:
        config = lab.write_config({}, name="other")
        config.write_text(lswap.config.read_text())
        result = await lab.cli("up", str(config))
        assert result.code == 1
        assert "lswap.sock" in result.err
        assert await lswap.chat("alpha") == lab.sentence("alpha")


def missing(lab: Lab) -> tuple[str, str]:
    return str(lab.folder / "no-server"), "no-server: No such file"


def not_executable(lab: Lab) -> tuple[str, str]:
    path = Path(lab.fake_engine())
    path.chmod(0o644)
    return str(path), "is not executable"


def a_folder(lab: Lab) -> tuple[str, str]:
    return str(lab.folder), "is not a file"


def something_else(lab: Lab) -> tuple[str, str]:
    return "/bin/true", "is not a llama-server"


def a_broken_binary(lab: Lab) -> tuple[str, str]:
    path = lab.folder / "llama-server"
    path.write_bytes(b"\x7fELF" + bytes(100))
    path.chmod(0o755)
    return str(path), "cannot be run"


def a_failing_one(lab: Lab) -> tuple[str, str]:
    path = lab.folder / "llama-server"
    path.write_text("#!/bin/sh\necho 'libcudart.so.12: cannot open' >&2\nexit 127\n")
    path.chmod(0o755)
    return str(path), "libcudart.so.12"


ENGINES = [missing, not_executable, a_folder, something_else, a_broken_binary, a_failing_one]


@pytest.mark.parametrize("make", ENGINES)
async def test_engines_that_do_not_work(lab: Lab, make: Callable[[Lab], tuple[str, str]]) -> None:
    engine, says = make(lab)
    config = lab.write_config({"alpha": lab.preset("alpha")}, engine=engine)
    up = await lab.cli("up", str(config))
    assert up.code == 1
    assert says in up.err
    assert "Traceback" not in up.err


async def test_one_preset_with_an_engine_that_does_not_work(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha"),
        "bad": {**lab.preset("bad"), "engine": str(lab.folder / "no-server")},
    }
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        error = error_of(await lswap.post_chat("bad"), 503)
        assert "no-server: No such file" in error["message"]


async def test_an_engine_that_disappears_while_serving(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}, engine=lab.old_engine()) as lswap:
        os.unlink((await lswap.state()).engine.path)
        error = error_of(await lswap.post_chat("alpha"), 503)
        assert (error["code"], error["failure"]) == ("model_failed", "engine")
        assert "llama-server-1" in error["message"]


# Requests that cannot work


async def raw(lswap: Lswap, data: bytes) -> bytes:
    """Send bytes, return all that comes back until the server closes."""
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    finally:
        writer.close()


async def test_requests_that_are_refused(lab: Lab) -> None:
    limits = {"header": "8KiB", "body": "64KiB"}
    models = {"alpha": lab.preset("alpha", aliases=["first"]), "beta": lab.preset("beta")}
    async with lab.lswap(models, limits=limits) as lswap:
        client, chat = lswap.client, "/v1/chat/completions"

        error = error_of(await lswap.post_chat("alpa"), 404)
        assert error["code"] == "model_not_found"
        assert "did you mean alpha" in error["message"]
        assert error["param"] == "model"

        error = error_of(await lswap.post_chat("something-else-entirely"), 404)
        assert "GET /v1/models lists the names" in error["message"]

        error = error_of(await client.post(chat, content=b'{"model": "alpha", '), 400)
        assert error["code"] == "bad_json"
        assert "ends too early" in error["message"]

        error = error_of(await client.post(chat, content=b'{"model": "alpha",,}'), 400)
        assert "line 1" in error["message"]

        error = error_of(await client.post(chat, json={"messages": []}), 400)
        assert error["code"] == "model_missing"
        assert "default_model" in error["message"]

        error = error_of(await client.post(chat, json={"model": 7}), 400)
        assert error["message"].startswith("`model` must be a string")

        error = error_of(await client.post(chat, content=b"x" * 100_000), 413)
        assert error["code"] == "body_too_large"

        answer = await client.get("/v1/models", headers={"x-long": "y" * 20_000})
        assert answer.status_code == 431
        assert "error" in answer.json()

        assert error_of(await client.get(chat), 405)["code"] == "method_not_allowed"
        assert error_of(await client.get("/v2/models"), 404)["code"] == "not_found"
        assert (await client.post("/api/push")).status_code == 501
        answer = await client.get("/v1/models", headers={"host": "evil.example"})
        assert "allowed_hosts: [evil.example]" in error_of(answer, 403)["message"]

        state = await lswap.state()
        assert (state.loads_total, state.requests_open) == (0, 0)
        # What was refused has not hurt: the model's own complaint passes through, and it answers.
        answer = await client.post(chat, json={"model": "alpha"})
        assert answer.status_code == 400
        assert "messages" in answer.text
        assert await lswap.chat("first") == lab.sentence("alpha")


BAD_FRAMING = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\nHost: localhost\n\n",
    b"POST /completion HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
]


async def test_framing_that_is_ambiguous(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        for data in BAD_FRAMING:
            answer = await raw(lswap, data)
            assert answer.startswith(b"HTTP/1.1 400 "), data
            assert b'"message"' in answer
        assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_the_default_model_answers_who_names_none(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}
    async with lab.lswap(models, default_model="beta") as lswap:
        body = chat_body("alpha")
        del body["model"]
        answer = await lswap.client.post("/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == lab.sentence("beta")
        assert answer.headers["x-lswap-model"] == "beta"


async def test_two_models_of_one_name(lab: Lab) -> None:
    """The name stays with the preset that is called so; the other is failed, and says why."""
    models = {"alpha": lab.preset("alpha", aliases=["beta"]), "beta": lab.preset("beta")}
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("beta") == lab.sentence("beta")
        response = await lswap.post_chat("alpha")
        error = error_of(response, 503)
        assert error["code"] == "model_failed"
        assert "'beta' already names models.beta" in error["message"]
