"""No request has llama-server fetch a URL, however it is written, unless the file says so."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llamaswap_py.api.large_body import STEP, JsonSkimmer
from llamaswap_py.api.media_urls import Scan, holds, may_name_url
from llamaswap_py.api.read_body import check_media
from llamaswap_py.config.parse import load_config
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import Body
from tests.unit.api_fakes import FakeExchange, FakeSupervisor, answer, make_config

pytestmark = pytest.mark.anyio
URL = "http://169.254.169.254/latest/meta-data"
ALLOWED = "allow_media_urls: true\nmodels: {alpha: {model: /a.gguf}}"


def part(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, kind: value}


def chat(*parts: Any) -> dict[str, Any]:
    return {"model": "alpha", "messages": [{"role": "user", "content": list(parts)}]}


IMAGE = part("image_url", {"url": URL})
ASKS = {
    "image": ("/v1/chat/completions", chat(IMAGE)),
    "https": ("/v1/chat/completions", chat(part("image_url", {"url": "https://x.test/a.png"}))),
    "any scheme of that beginning": (
        "/v1/chat/completions",
        chat(part("image_url", {"url": "http+unix://x"})),
    ),
    "string": ("/v1/chat/completions", chat(part("image_url", URL))),
    "sound as data": ("/v1/chat/completions", chat(part("input_audio", {"data": URL}))),
    "sound": ("/v1/chat/completions", chat(part("input_audio", {"url": URL}))),
    "video": ("/v1/chat/completions", chat(part("video_url", {"url": URL}))),
    "counted": ("/v1/chat/completions/input_tokens", chat(IMAGE)),
    "template": ("/apply-template", chat(IMAGE)),
    "responses": (
        "/v1/responses",
        {"model": "alpha", "input": [{"content": [{"type": "input_image", "image_url": URL}]}]},
    ),
    "anthropic": (
        "/v1/messages",
        chat({"type": "image", "source": {"type": "url", "url": URL}}),
    ),
    "of a tool": (
        "/v1/messages",
        chat({"type": "tool_result", "content": [{"source": {"type": "url", "url": URL}}]}),
    ),
    "embedding": ("/v1/embeddings", {"model": "alpha", "input": [{"content": [IMAGE]}]}),
    "below upstream": ("/upstream/alpha/v1/chat/completions", chat(IMAGE)),
    "of a program": ("/upstream/alpha/generate", {"text": "x", "image_data": URL}),
    "ollama": ("/api/chat", chat(IMAGE)),
    "large": ("/v1/chat/completions", {**chat(IMAGE), "user": "x" * 400_000}),
    "large below upstream": (
        "/upstream/alpha/v1/chat/completions",
        {**chat(IMAGE), "user": "x" * 400_000},
    ),
    "among very many": (
        "/v1/chat/completions",
        {
            "messages": [
                *({"role": "user", "content": f"line {n}"} for n in range(20_000)),
                {"role": "user", "content": [IMAGE]},
                *({"role": "user", "content": f"line {n}"} for n in range(20_000)),
            ],
            "model": "alpha",
        },
    ),
}


async def status(path: str, body: bytes, config: str = "", kind: str = "") -> int:
    supervisor = FakeSupervisor(make_config(config)) if config else FakeSupervisor()
    exchange = FakeExchange("POST", path, body, {"content-type": kind} if kind else None)
    if len(body) > 300_000:
        exchange.head.content_length = None
    await answer(exchange, supervisor)
    assert bool(exchange.relayed) == (exchange.status == 200), exchange.answer
    if exchange.status == 400:
        assert b"allow_media_urls" in exchange.answer or b"form" in exchange.answer
    return exchange.status


@pytest.mark.parametrize("name", ASKS)
async def test_it_is_refused(name: str) -> None:
    path, ask = ASKS[name]
    assert await status(path, json.dumps(ask).encode()) == 400


@pytest.mark.parametrize("name", sorted(ASKS))
async def test_it_passes_where_the_file_allows_it(name: str) -> None:
    path, ask = ASKS[name]
    assert await status(path, json.dumps(ask).encode(), ALLOWED) == 200


WRITTEN = {
    "escaped letter": b'{"url":"\\u0068ttp://x"}',
    "escaped letters": b'{"url":"h\\u0074\\u0074\\u0070://x"}',
    "escaped name": b'{"\\u0075rl":"http://x"}',
    "blanks": b'{"url"' + b" \n" * 500 + b":" + b"\t" * 500 + b'"http://x"}',
    "twice": b'{"url":"data:image/png;base64,AAAA","url":"http://x"}',
}


MESSAGE = b'{"role":"user","content":[{"type":"image_url","image_url":%b}]}'


def body_of(image: bytes) -> bytes:
    return b'{"model":"alpha","messages":[%b]}' % (MESSAGE % image)


@pytest.mark.parametrize("image", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("padding", [0, 400_000, 4_000_000])
async def test_odd_spellings(image: bytes, padding: int) -> None:
    body = body_of(image)
    lines = b",".join([b'{"role":"user","content":"x"}'] * (padding // 30))
    body = body.replace(b"[{", b"[" + (lines + b"," if lines else b"") + b"{", 1)
    json.loads(body)
    assert await status("/v1/chat/completions", body) == 400
    assert await status("/upstream/alpha/v1/chat/completions", body) == 400


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b" " * 3000, b"\xef\xbb\xbf\r\n"])
@pytest.mark.parametrize("size", [0, 400_000])
@pytest.mark.parametrize(
    "kind",
    [
        *("application/json", "text/plain", "application/x-www-form-urlencoded", ""),
        *("multipart/form-data; boundary=x", "Multipart/Form-Data", "multipart/form-dataX"),
    ],
)
async def test_the_content_type_does_not_hide_it(start: bytes, size: int, kind: str) -> None:
    body = start + body_of(b'{"url":"http://x"}')[:-1] + b',"pad":"' + b"=" * size + b'"}'
    query = "?model=alpha"
    path = f"/v1/chat/completions{query}"
    assert await status(path, body, kind=kind) == 400
    assert await status(f"/upstream/alpha{path}", body, kind=kind) == 400


@pytest.mark.parametrize("image", [b'{"url":"http://x"}', b'"http://x"'])
def test_where_a_piece_ends_does_not_matter(image: bytes) -> None:
    """The place at which a large body is cut moves over the whole of the part."""
    message = MESSAGE % image
    filler = b'{"role":"user","content":"x"},'
    for shift in range(0, len(message) + len(filler)):
        before = filler * 35_000 + b'{"a":"%b"},' % (b"x" * shift)
        body = b'{"model":"alpha","messages":[' + before + message + b"," + filler * 9_000
        body += b'{"role":"user","content":"x"}]}'
        skimmer = JsonSkimmer("mark-", top_level_only=True)
        skimmer.feed(body)
        with pytest.raises(ApiError, match="allow_media_urls"):
            check_media(Body.of(body), skimmer.finish(Body.of(body)))


PASSING = {
    "text": chat({"type": "text", "text": "http://x is a URL"}),
    "plain": {"model": "alpha", "messages": [{"role": "user", "content": "https://x.test"}]},
    "data": chat(part("image_url", {"url": "data:image/png;base64,AAAA"})),
    "quoted": chat({"type": "text", "text": '{"image_url": {"url": "http://x"}}'}),
    "annotation": {
        "model": "alpha",
        "messages": [{"annotations": [{"type": "url_citation", "url_citation": {"url": URL}}]}],
    },
    "citation": {"model": "alpha", "input": [{"type": "url_citation", "url": URL}]},
    "result": chat({"type": "search_result", "source": URL}),
    "tool": {"model": "alpha", "tools": [{"type": "mcp", "server_url": URL}]},
    "schema": {"model": "alpha", "tools": [{"properties": {"url": {"default": URL}}}]},
    "metadata": {"model": "alpha", "metadata": {"url": URL}},
    "list": {"model": "alpha", "input": [URL, URL]},
    "many texts": {
        "messages": [{"role": "user", "content": f"http://x/{n}"} for n in range(60_000)],
        "model": "alpha",
    },
}


@pytest.mark.parametrize("name", PASSING)
async def test_other_urls_pass(name: str) -> None:
    body = json.dumps(PASSING[name]).encode()
    assert await status("/v1/chat/completions", body) == 200
    assert await status("/upstream/alpha/v1/chat/completions", body) == 200


def links(count: int) -> bytes:
    """Return a piece of JSON with so many values that begin with `http`, none of a medium."""
    piece = b",".join([b'"link":"http://x"'] * count)
    return b'{"names":["http","http"],' + piece + b',"http":1}'


def test_a_piece_with_too_many_urls_to_examine_counts_as_one_with_a_medium() -> None:
    assert len(links(8_001)) < STEP
    for pieces, found in (
        ([links(8_000)], False),
        ([links(8_001)], True),
        ([links(8_000), b",", links(8_000)], False),  # the bound is that of a single piece
        ([links(8_000), b',{"url":"http://x"}'], True),
    ):
        scan = Scan()
        for piece in pieces:
            scan.feed(piece)
        assert scan.found is found
        if len(pieces) == 1:
            assert may_name_url(pieces[0]) is found


@pytest.mark.parametrize(("count", "expected"), [(8_000, 200), (8_001, 400)])
async def test_a_body_with_too_many_urls_to_examine_is_decoded_or_refused(
    count: int, expected: int
) -> None:
    body = b'{"model":"alpha","messages":[],"x":%b,"y":[%b]}'
    values = b",".join([b"1"] * 40_000)  # too many for the body to be decoded
    assert await status("/v1/chat/completions", body % (links(count), values)) == expected


async def test_a_form_with_any_bytes_passes() -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n"url":"http\r\n--x--\r\n'
    kind = "multipart/form-data; boundary=x"
    path = "/v1/audio/transcriptions?model=alpha"
    assert await status(path, body, kind=kind) == 200


def escaped(text: str, chance: random.Random) -> str:
    return "".join(f"\\u{ord(c):04x}" if chance.random() < 0.3 else c for c in text)


def test_no_spelling_is_missed() -> None:
    """What a parser finds in a text is found before it is parsed, whatever is escaped."""
    chance = random.Random(5)
    for _ in range(3000):
        name = chance.choice(["url", "data", "text", "image_url"])
        value = chance.choice(["http://x", "https", "httx", "data:,http", "http"])
        blank = chance.choice(["", " ", "\n\t"])
        inner = f'{{"{escaped(name, chance)}"{blank}:{blank}"{escaped(value, chance)}"}}'
        text = f'{{"a\\\\":"\\"http","image_url":{inner}}}'
        decoded = json.loads(text)
        meant = any(
            key in ("url", "data") and one.startswith("http")
            for key, one in decoded["image_url"].items()
        )
        if name == "image_url":
            meant = value.startswith("http")
        data = text.encode()
        assert (may_name_url(data) and holds(data)) == meant, text


def test_an_earlier_release_allowed_it() -> None:
    for said, allowed in (("", False), ("compat: 0.1\n", True)):
        text = f"{said}models: {{alpha: {{model: /a.gguf}}}}"
        config = load_config(text, path=None, base_dir="/", env={}, home="/")
        assert config.allow_media_urls is allowed
