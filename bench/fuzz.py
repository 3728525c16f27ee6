"""Feed broken input to everything that reads what others wrote.

    python -m bench.fuzz [TARGET ...] [--inputs N] [--seed S]

Good inputs are broken in small ways: bytes changed, parts repeated, cut out, swapped in from other
inputs, and words put in that matter to the reader. A reader may refuse with its own kind of error;
anything else, and anything that takes longer than a few seconds, is a finding, printed with the
input that caused it. What the HTTP parser lets through is rendered for a child and read again by
h11: another parser must see the same one request, or two readers of one connection disagree about
where a request ends - which is request smuggling.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import h11

from llamaswap_py.api.body import read_ask
from llamaswap_py.api.ollama.answers import Clock, LineStream, OllamaAnswer
from llamaswap_py.api.ollama.translate import texts_to_embed, translate_chat, translate_generate
from llamaswap_py.config.parse import load_config
from llamaswap_py.errors import ApiError, ConfigError
from llamaswap_py.gguf import GgufError, read_header
from llamaswap_py.llamacpp.failures import classify
from llamaswap_py.llamacpp.output import STATE_PREFIX, LineSplitter, Readiness
from llamaswap_py.proxy.messages import (
    Body,
    RequestHead,
    UpstreamRequest,
    WireError,
    WireLimits,
    forward_headers,
    render_request,
)
from llamaswap_py.proxy.parsers import RequestParser
from tests.estimate.gguf_bytes import header, reader, tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_HANGS: Final = 5.0
_NUMBERS: Final = (b"0", b"-1", b"18446744073709551616", b"9" * 400, b"1e999", b"0x10", b"\xd9\xa3")


@dataclass(frozen=True, slots=True)
class Target:
    """One reader: what it reads well, words it knows, and how to try it.

    `read` returns whether the input was accepted; it raises nothing that `refusals` does not name.
    """

    name: str
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    read: Callable[[bytes, random.Random], None]
    refusals: tuple[type[Exception], ...]


@dataclass(slots=True)
class Findings:
    """What came of a target."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    found: list[tuple[str, bytes]] = field(default_factory=list)


def broken(target: Target, dice: random.Random) -> bytes:
    """Return one of the target's seeds, broken in one to four ways."""
    data = bytearray(dice.choice(target.seeds))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = min(at + dice.choice((1, 1, 2, 4, 16)), len(data))
        match dice.randrange(7):
            case 0 if data:
                data[at - 1] = dice.randrange(256)
            case 1:
                data[at:at] = dice.choice(target.words)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * dice.choice((1, 2, 40))
            case 4:
                other = dice.choice(target.seeds)
                cut = dice.randrange(len(other) + 1)
                data[at:end] = other[cut : cut + dice.choice((1, 8, 64))]
            case 5:
                data[at:end] = dice.choice(_NUMBERS)
            case _:
                data[at:at] = bytes(
                    [dice.choice(b"\x00\x09\x0a\x0b\x0d\x20\x7f\x80\xff:;,{}[]\"'")]
                )
    return bytes(data)


def fuzz(target: Target, inputs: int, seed: int) -> Findings:
    """Try a target with so many inputs; the same seed makes the same ones."""
    dice, findings = random.Random(f"{seed} {target.name}"), Findings()
    began = time.perf_counter()
    previous = signal.signal(signal.SIGALRM, _too_long)
    try:
        for _ in range(inputs):
            data = broken(target, dice)
            _try(target, data, dice, findings)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    findings.seconds = time.perf_counter() - began
    return findings


def _try(target: Target, data: bytes, dice: random.Random, findings: Findings) -> None:
    findings.inputs += 1
    began = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, _HANGS)
        target.read(data, dice)
        findings.accepted += 1
    except target.refusals as refusal:
        findings.refused += 1
        if not str(refusal):
            findings.found.append(("it was refused without a word", data))
    except Exception as error:
        findings.found.append((f"{type(error).__name__}: {error}"[:200], data))
    findings.slowest = max(findings.slowest, time.perf_counter() - began)


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"it took longer than {_HANGS:g} s")


# HTTP


class _Sink:
    def __init__(self) -> None:
        self.requests: list[tuple[RequestHead, list[bytes]]] = []
        self.complete = 0

    def on_request(self, head: RequestHead) -> None:
        assert self.complete == len(self.requests), "a request began before the last one ended"
        self.requests.append((head, []))

    def on_piece(self, piece: bytes) -> None:
        self.requests[-1][1].append(piece)

    def on_request_complete(self) -> None:
        self.complete += 1


def read_http(data: bytes, dice: random.Random) -> None:
    """Parse a connection's bytes, cut anywhere; what is accepted must mean the same to h11."""
    sink = _Sink()
    parser = RequestParser(sink, WireLimits())
    cut = dice.randrange(len(data) + 1)
    refused = None
    try:
        for piece in (data[:cut], data[cut:]):
            if parser.feed(piece) is not None:
                break
    except WireError as error:
        refused = error
    finally:
        parser.close()
    for head, pieces in sink.requests[: sink.complete]:
        _check_as_forwarded(head, b"".join(pieces))
    if refused is not None:
        raise refused


def _check_as_forwarded(head: RequestHead, body: bytes) -> None:
    """Read what a child would get: one request, this method and body, and nothing after it."""
    headers = forward_headers(head, peer="127.0.0.1", scheme="http")
    sent = UpstreamRequest(head.method, head.target, headers, Body.of(body))
    other = h11.Connection(h11.SERVER)
    other.receive_data(render_request(sent) + body)
    first = other.next_event()
    assert isinstance(first, h11.Request), f"h11 reads {first!r}"
    assert first.method == head.method.encode(), "another method"
    got = b""
    while isinstance(event := other.next_event(), h11.Data):
        got += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage), f"h11 reads {event!r}"
    assert got == body, "another body"
    assert not other.trailing_data[0], "something is left over"


_HOST: Final = b"Host: a\r\n"
HTTP: Final = Target(
    "http",
    (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost:8080\r\nAccept: */*\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n" + _HOST + b"Content-Length: 13\r\n\r\n"
        b'{"model":"a"}GET / HTTP/1.1\r\nHost: a\r\n\r\n',
        b"POST /x?y=1 HTTP/1.1\r\n" + _HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        b"5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n" + _HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"Expect: 100-continue\r\nConnection: close\r\n\r\n",
        b"GET http://a/b?c HTTP/1.0\r\nConnection: keep-alive, x\r\nX: y\r\n\r\n",
    ),
    (
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b" ",
            b"\t",
            b"\r\n ",
            b"\r\n\t",
            b"\r\n\r\n",
            b"0\r\n\r\n",
        ),
        *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +1\r\n"),
        *(b"content-length: 5, 5\r\n", b"Content-Length : 5\r\n", b"Content-Length:\r\n 5\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n"),
        *(b"Transfer-Encoding: xchunked\r\n", b"transfer-encoding: chunked, identity\r\n"),
        *(b"Transfer-Encoding: identity\r\n", b"Transfer_Encoding: chunked\r\n", b"chunked"),
        *(
            b"Host: b\r\n",
            b"Connection: content-length\r\n",
            b"Upgrade: h2c\r\n",
            b";x=\n",
            b"fffffff",
        ),
        *(b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n", b"HTTP/1.1", b"HTTP/0.9", b"PRI * HTTP/2.0"),
    ),
    read_http,
    (WireError,),
)


# What other programs wrote


def read_gguf(data: bytes, dice: random.Random) -> None:
    """Read a header."""
    read_header(reader(data), len(data))


_PAIRS: Final[dict[str, Any]] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.attention.head_count_kv": [4, 2],
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "b", "ü"],
}
GGUF: Final = Target(
    "gguf",
    (
        header(_PAIRS, (tensor("one", (64, 3), 0, 0), tensor("two", (256,), 12, 768)), data=912),
        header({"general.architecture": "x", "general.alignment": 64}, (), data=0),
    ),
    (b"GGUF", b"\xff" * 8, b"\0" * 8, b"\x01\0\0\0\0\0\0\0", b"\xff\xff\xff\x7f", b"\x09\0\0\0"),
    read_gguf,
    (GgufError,),
)


def read_log(data: bytes, dice: random.Random) -> None:
    """Read a child's output in pieces, in both dialects, and look for the cause of its end."""
    splitter, lines = LineSplitter(), []
    cut = dice.randrange(len(data) + 1)
    for piece in (data[:cut], data[cut:]):
        lines += splitter.feed(piece)
    lines += splitter.close()
    for child_mode in (False, True):
        readiness = Readiness(child_mode=child_mode)
        for line in lines:
            assert readiness.feed("stdout", line), "a line that means nothing is still a line"
    assert classify(1, None, lines) is not None


_STATE: Final = STATE_PREFIX.encode()
LOG: Final = Target(
    "log",
    (
        _STATE + b'{"state":"loading","payload":{"stages":["text_model"],"current":"text_model",'
        b'"value":0.5}}\n' + _STATE + b'{"state":"ready","payload":{"id":"a"}}\n',
        b'{"type":"log","time":1,"level":"error","msg":"error: failed to open GGUF file\\n"}\n',
        b"\x1b[32m0.00.001.000 I srv  llama_server: listening on http://127.0.0.1:8080\x1b[0m\n",
        b"srv  llama_server: listening on unix:///tmp/1.sock\nmain: server is listening on x\n",
        (
            b"ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1.00 MiB on device 0: "
            b"cudaMalloc failed: out of memory\nllama_model_load: error loading model: unknown "
            b"model architecture: 'x'\nerror while handling argument \"-c\": stoi\n"
        ),
    ),
    (
        b"\n",
        b"\r",
        b"\x1b[",
        b"\xff\xfe",
        b"http://",
        b"unix://",
        b":99999999",
        _STATE,
        b'"payload":',
    ),
    read_log,
    (),
)


# What clients wrote


def read_model(data: bytes, dice: random.Random) -> None:
    """Find the model's name in a body; the standard library must find the same one."""
    kind = dice.choice(_KINDS)
    ask = read_ask(kind, data)
    if kind != b"application/json" or not data.lstrip(b" \t\r\n").startswith(b"{"):
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        assert ask.model == (found.get("model") or None), "json finds another model"


_KINDS: Final = (
    *(b"application/json", b"application/json", b"multipart/form-data; boundary=XyZ"),
    *(
        b"application/x-www-form-urlencoded",
        b"",
        b"multipart/form-data; boundary=",
        b"multipart/x;;=",
    ),
)
EXTRACT: Final = Target(
    "extract",
    (
        b'{"model":"qwen3-8b","stream":true,"messages":[{"role":"user","content":"hi \\u00e4"}]}',
        b'{"messages":[{"model":"inner"}],"mod\\u0065l":"a","tools":[],"model":"b"}',
        (
            b'--XyZ\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--XyZ\r\n'
            b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\r\n--XyZ--\r\n'
        ),
        b"model=a%2Fb&stream=true&x=1",
    ),
    (
        b'"model"',
        b'"model":"z",',
        b"null",
        b"\\ud800",
        b"\\u0000",
        b"[" * 50,
        b"{" * 50,
        b"--XyZ",
        b"\xef\xbb\xbf",
        b'"stream":1',
        b"name=model",
        b"%",
        b"\r\n\r\n",
    ),
    read_model,
    (ApiError,),
)


def read_ollama(data: bytes, dice: random.Random) -> None:
    """Translate a request, and an answer."""
    answer = LineStream(OllamaAnswer("m", dice.choice(("chat", "generate", "native")), _CLOCK))
    cut = dice.randrange(len(data) + 1)
    lines = answer.feed(b"data: " + data[:cut]) + answer.feed(data[cut:] + b"\n") + answer.end()
    for line in lines.splitlines():
        assert isinstance(json.loads(line), dict), "a line that is no object"
    try:
        ask = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(ask, dict):
        for translate in (translate_chat, translate_generate, texts_to_embed):
            translate(ask)


_CLOCK: Final = Clock(now=lambda: "2026-01-01T00:00:00Z", elapsed=lambda: 1)
OLLAMA: Final = Target(
    "ollama",
    (
        (
            b'{"model":"a","messages":[{"role":"user","content":"hi","images":["iVBORw0KGgo="]}],'
            b'"options":{"temperature":0.5,"num_predict":-2,"stop":["x"]},"format":"json","think":true}'
        ),
        b'{"model":"a","prompt":"hi","system":"s","suffix":"","raw":false,"keep_alive":"5m"}',
        b'{"model":"a","input":["x","y"],"truncate":true,"dimensions":3}',
        (
            b'{"choices":[{"delta":{"content":"hi","tool_calls":[{"index":0,"function":{"name":"f",'
            b'"arguments":"{}"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1},'
            b'"timings":{"prompt_n":1,"prompt_ms":2.5,"predicted_n":3,"predicted_ms":1e3}}'
        ),
        b'{"content":"x","stop":true,"stop_type":"limit","tokens_evaluated":3}',
        b'{"error":{"code":500,"message":"no","type":"server_error"}}',
    ),
    (
        b"null",
        b"[]",
        b"{}",
        b'""',
        b"0",
        b"1e400",
        b"-1",
        b"true",
        b'"tool_calls":7,',
        b'"choices":1,',
        b'"role":"tool",',
        b'"images":"x",',
        b"[[[[",
        b'"NaN"',
        b"NaN",
        b"1e308",
    ),
    read_ollama,
    (ApiError,),
)


def read_configuration(data: bytes, dice: random.Random) -> None:
    """Read a file."""
    text = data.decode("utf-8", "replace")
    load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")


CONFIG: Final = Target(
    "config",
    (
        b"listen: 127.0.0.1:8080\nmodels:\n  a:\n    model: x.gguf\n    args: {ctx-size: 4096}\n",
        (
            b"defaults: {ttl: 30m, liveness: 2m}\nmemory: {margin: {CUDA0: 2GiB}, devices: "
            b"{host: 1GiB}}\nmodels: {a: {model: x.gguf, aliases: [b], variants: [{name: v, "
            b"args: {x: 1}}]}}\n"
        ),
        (
            b"aliases: {p: {split: {a: 1, b: 2}}}\ngroups: {g: {exclusive: [a, b]}}\n"
            b"models: {a: {model: x}, b: {hf: u/r:Q4}}\n"
        ),
    ),
    (
        b"&x ",
        b"*x",
        b"<<: ",
        b"!!python/object ",
        b"? ",
        b"- ",
        b"\n  ",
        b"{",
        b"}",
        b": ",
        b"\t",
        b"~",
        b"${env.HOME}",
        b"9GiB",
        b"null",
        b"\xc2\x85",
        b"---\n",
        b"|\n",
        b"models:",
    ),
    read_configuration,
    (ConfigError,),
)

TARGETS: Final = {one.name: one for one in (HTTP, EXTRACT, OLLAMA, LOG, GGUF, CONFIG)}


def main() -> int:
    """Fuzz what was asked for; return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[[], *TARGETS], help="default: all")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each (1000000)")
    parser.add_argument("--seed", type=int, default=1, help="other inputs (1)")
    asked = parser.parse_args()
    found = 0
    print(
        f"{'target':10}{'inputs':>10}{'accepted':>10}{'refused':>10}{'findings':>10}"
        f"{'slowest':>10}{'seconds':>9}"
    )
    for name in asked.what or TARGETS:
        came = fuzz(TARGETS[name], asked.inputs, asked.seed)
        found += len(came.found)
        print(
            f"{name:10}{came.inputs:10}{came.accepted:10}{came.refused:10}{len(came.found):10}"
            f"{came.slowest * 1000:7.0f} ms{came.seconds:9.0f}",
            flush=True,
        )
        for what, data in came.found[:10]:
            print(f"  {what}\n    {data!r}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
