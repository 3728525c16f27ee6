"""Filters, aliases that choose, and pages of other origins, with real children."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.answers import chat_body

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
PAGE = {"origin": "https://chat.lan"}


async def test_filters_change_what_the_child_is_asked(lab: Lab) -> None:
    request = {
        "set": {"max_tokens": 2},
        "strip": ["stop"],
        "per_name": {"alpha:long": {"set": {"max_tokens": 4}}},
    }
    models = {"alpha": lab.preset("alpha", size="50MiB", request=request)}
    async with lab.lswap(models) as lswap:
        words = lab.sentence("alpha").split()
        assert await lswap.chat("alpha", max_tokens=50, stop=["says"]) == " ".join(words[:2])
        assert await lswap.chat("alpha:long", max_tokens=50) == " ".join(words[:4])
        said = await lswap.client.post(
            "/api/generate", json={"model": "alpha:long", "prompt": "hi", "stream": False}
        )
        assert said.json()["eval_count"] == 4


async def test_aliases_choose(lab: Lab) -> None:
    models = {name: lab.preset(name, size="150MiB") for name in ("alpha", "beta")}
    aliases = {"best": {"first": ["alpha", "beta"]}, "only": {"split": {"beta": 1, "alpha": 0}}}
    async with lab.lswap(models, aliases=aliases) as lswap:
        assert await lswap.chat("best") == lab.sentence("alpha")
        assert await lswap.chat("only") == lab.sentence("beta")
        assert await lswap.chat("best") == lab.sentence("beta"), "it is the one that is ready"


async def test_a_page_of_another_origin_may_use_it_if_the_file_says_so(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha")}
    path = "/v1/chat/completions"
    async with lab.lswap(models, cors={"origins": ["https://chat.lan"]}) as lswap:
        asked = {"access-control-request-method": "POST", **PAGE}
        before = await lswap.client.options(path, headers=asked)
        assert before.status_code == 204
        assert before.headers["access-control-allow-methods"] == "POST"
        answer = await lswap.client.post(path, json=chat_body("alpha"), headers=PAGE)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://chat.lan"
        foreign = {"origin": "https://evil.example"}
        refused = await lswap.client.post(path, json=chat_body("alpha"), headers=foreign)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
