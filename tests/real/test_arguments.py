"""Loading a model with other arguments than the file's, as an administrator asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import error_of, instance_of

if TYPE_CHECKING:
    import httpx

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def _load(lswap: Lswap, args: dict[str, Any], **query: str) -> httpx.Response:
    path = "/lswap/v1/models/alpha/load"
    return await lswap.client.post(path, json={"args": args}, params=query)


async def _context(lswap: Lswap) -> int | None:
    return instance_of(await lswap.state(), "alpha").n_ctx


async def test_they_last_until_it_is_unloaded(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha"), "beta": lab.preset("beta", size="50MiB")}
    async with lab.lswap(models, allow_args=True) as lswap:
        await lswap.chat("alpha")
        assert await _context(lswap) == 256
        answer = await _load(lswap, {"c": 1024, "parallel": 1})
        assert answer.status_code == 200, answer.text
        assert answer.json()["state"] == "ready"
        assert await _context(lswap) == 1024
        assert (await lswap.model("alpha")).args.count("--ctx-size") == 1
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        # A reload that leaves the preset alone leaves them alone too.
        changed = {**models, "beta": lab.preset("beta", size="60MiB")}
        lab.write_config(changed, allow_args=True)
        report = await lswap.client.post("/lswap/v1/reload")
        assert report.json()["changed"] == []
        assert await _context(lswap) == 1024
        await lswap.client.post("/lswap/v1/models/alpha/unload")
        await lswap.chat("alpha")
        assert await _context(lswap) == 256


async def test_they_are_checked_like_those_of_the_file(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}, allow_args=True) as lswap:
        await lswap.chat("alpha")
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"ctx-sise": 3}, "ctx-size"),
            ({"port": 80}, "listen"),
            ({"lora": "/etc/passwd"}, "names a file"),
            ({"chat-template-file": "/etc/passwd"}, "names a file"),
            ({"slot-save-path": "/tmp"}, "names a file"),
            ({"c": 1, "ctx-size": 2}, "twice"),
        ]
        for args, word in wrong:
            error = error_of(await _load(lswap, args), 400)
            assert word in error["message"], (args, error)
        for body in (b'{"args": 3}', b'{"args": {"c": {}}}', b'{"arguments": {}}', b"[]"):
            answer = await lswap.client.post("/lswap/v1/models/alpha/load", content=body)
            assert error_of(answer, 400)["code"] == "bad_json"
        assert error_of(await _load(lswap, {"c": 512}, wait="false"), 400)["param"] == "wait"
        assert (await lswap.state()).loads_total == 1


async def test_a_load_that_fails_leaves_the_file_s(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}, allow_args=True) as lswap:
        answer = await _load(lswap, {"load-mode": "nonsense"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_failed"
        assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_they_need_to_be_allowed(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        error = error_of(await _load(lswap, {"c": 512}), 403)
        assert "allow_args: true" in error["message"]
