"""Keys in front of real children, with the clients' own SDKs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
import yaml

from llamaswap_py.config.api_keys import hash_secret
from tests.real.answers import PATIENCE, error_of
from tests.real.harness import poll

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
ADMIN = {"authorization": "Bearer boss"}
HELLO: Any = [{"role": "user", "content": "hi"}]


def write_keys(folder: Path) -> dict[str, str]:
    keys = [
        {"name": "boss", "hash": hash_secret(b"boss"), "kind": "admin"},
        {"name": "ann", "hash": hash_secret(b"ann"), "models": ["alpha"], "max_in_flight": 1},
    ]
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": keys}))
    path.chmod(0o600)
    return {"file": str(path)}


async def test_keys_open_what_they_may(lab: Lab) -> None:
    models = {name: lab.preset(name, size="50MiB") for name in ("alpha", "beta")}
    keys = write_keys(lab.folder)
    async with lab.lswap(models, keys=keys, listen="0.0.0.0:0") as lswap:
        assert (await lswap.client.get("/health")).status_code == 200
        error = error_of(await lswap.client.get("/v1/models"), 401)
        assert error["code"] == "unauthorized"
        async with openai.AsyncOpenAI(
            base_url=f"{lswap.url}/v1", api_key="wrong", max_retries=0
        ) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with openai.AsyncOpenAI(
            base_url=f"{lswap.url}/v1", api_key="ann", max_retries=0
        ) as client:
            assert [one.id for one in (await client.models.list()).data] == ["alpha"]
            answer = await client.chat.completions.create(model="alpha", messages=HELLO)
            assert answer.choices[0].message.content == lab.sentence("alpha")
            with pytest.raises(openai.PermissionDeniedError, match="may not use model 'beta'"):
                await client.chat.completions.create(model="beta", messages=HELLO)
        async with anthropic.AsyncAnthropic(
            base_url=lswap.url, api_key="ann", max_retries=0
        ) as client:
            said = await client.messages.create(model="alpha", messages=HELLO, max_tokens=50)
            assert said.content[0].text == lab.sentence("alpha")  # type: ignore[union-attr]
            with pytest.raises(anthropic.PermissionDeniedError):
                await client.messages.create(model="beta", messages=HELLO, max_tokens=5)
        path = "/lswap/v1/models/alpha/unload"
        error = error_of(await lswap.client.post(path, headers={"x-api-key": "ann"}), 403)
        assert "the right 'unload' or an admin key is needed" in error["message"]
        assert (await lswap.client.post(path, headers=ADMIN)).status_code == 200
        shown = await lab.cli("ps", "--url", lswap.url)
        assert shown.code == 1
        assert "wants an API key" in shown.err
        assert (await lab.cli("ps", "--url", lswap.url, "--key", "boss")).code == 0


async def test_a_key_has_so_many_requests_open_and_gives_them_back(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha")}
    headers = {"authorization": "Bearer ann"}
    body = {"model": "alpha", "messages": HELLO, "stream": True, "max_tokens": 100_000}
    path = "/v1/chat/completions"
    async with lab.lswap(models, keys=write_keys(lab.folder)) as lswap:
        async with lswap.client.stream("POST", path, json=body, headers=headers) as stream:
            lines = stream.aiter_lines()  # kept: without it the client would close the stream
            await anext(lines)
            error = error_of(await lswap.client.post(path, json=body, headers=headers), 429)
            assert error["code"] == "too_many_requests"

        async def given_back() -> bool:
            return (await lswap.client.get("/v1/models", headers=headers)).status_code == 200

        await poll(given_back)
        log = "\n".join(lswap.log)
        assert "Bearer" not in log


@pytest.mark.parametrize("path", ["props", "%70rops", "lora%2Dadapters", "%6cora-adapters"])
async def test_below_upstream_too_an_admin_s_routes_take_an_admin_key(lab: Lab, path: str) -> None:
    """llama-server decodes paths (cpp-httplib's parse_request_line)."""
    models = {"alpha": lab.preset("alpha")}
    async with lab.lswap(models, keys=write_keys(lab.folder)) as lswap:
        target = f"{lswap.url}/upstream/alpha/{path}"
        answer = await lswap.client.post(target, json=[], headers={"x-api-key": "ann"})
        assert error_of(answer, 403)["code"] == "forbidden"
        assert (await lswap.client.post(target, json=[], headers=ADMIN)).status_code != 403


async def test_a_limited_key_hears_of_no_other_model(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha"), "secret": lab.endless("secret", size="50MiB")}
    async with lab.lswap(models, keys=write_keys(lab.folder)) as lswap:
        body = {"model": "secret", "messages": HELLO, "stream": True, "max_tokens": 100_000}
        path, ann = "/v1/chat/completions", {"x-api-key": "ann"}
        async with lswap.client.stream("POST", path, json=body, headers=ADMIN) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            for path in ("state", "decisions", "requests"):
                for headers, sees in ((ADMIN, True), (ann, False)):
                    answer = await lswap.client.get(f"/lswap/v1/{path}", headers=headers)
                    assert answer.status_code == 200
                    assert ("secret" in answer.text) == sees, (path, answer.text)
            for path in ("/metrics", "/v1/models", "/models", "/api/tags", "/api/ps"):
                assert "secret" not in (await lswap.client.get(path, headers=ann)).text, path
        async with (
            asyncio.timeout(PATIENCE),
            lswap.client.stream(
                "GET", "/lswap/v1/events", params={"after": "0"}, headers=ann
            ) as stream,
        ):
            lines = stream.aiter_lines()
            await lswap.client.post("/lswap/v1/reload", headers=ADMIN)
            async for line in lines:
                assert "secret" not in line
                if line == "event: reload":
                    break


@pytest.mark.parametrize("how", ["substitute: secret", "substitute: loaded"])
async def test_no_other_model_answers_for_a_limited_key(lab: Lab, how: str) -> None:
    models = {"alpha": lab.preset("alpha", size="150MiB"), "secret": lab.endless("secret")}
    async with lab.lswap(models, keys=write_keys(lab.folder), policy={"max_wait": "0s"}) as lswap:
        body = {"model": "secret", "messages": HELLO, "stream": True, "max_tokens": 100_000}
        path, headers = "/v1/chat/completions", {"x-api-key": "ann", "x-lswap-when-full": how}
        async with lswap.client.stream("POST", path, json=body, headers=ADMIN) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            asked = asyncio.create_task(
                lswap.client.post(
                    path,
                    json={"model": "alpha", "messages": HELLO, "max_tokens": 5},
                    headers=headers,
                )
            )

            async def settled() -> bool:
                state = (await lswap.client.get("/lswap/v1/state", headers=ADMIN)).json()
                waits = any(one["waiting"] for one in state["models"])
                return waits or asked.done()

            await poll(settled)
        answer = await asked
        assert (answer.status_code, answer.headers["x-lswap-model"]) == (200, "alpha")
