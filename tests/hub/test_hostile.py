"""A hub that means harm: a download ends soon, within its folder, and says why."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llamaswap_py.client.outgoing import Guard, OutgoingError, kind_of
from llamaswap_py.hub.api import headers_for
from llamaswap_py.hub.fetch import Order, Step

REPO = "someone/Tiny-GGUF"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "tiny-Q4_K_M.gguf"
MODEL = b"GGUF" + bytes(range(256)) * 400
HASH = hashlib.sha256(MODEL).hexdigest()
MEMORY = 600 << 20
"""Bytes of address space that a download may add to what its program takes."""
SHORT = """
import llamaswap_py.hub.fetch as fetch
import llamaswap_py.hub.api as listing
import llamaswap_py.client.outgoing as outgoing
fetch._STALLED = listing.ANSWERS = fetch.ANSWERS = 3.0
outgoing._WINDOW = 2.0
"""
"""Limits for a server that means harm. An honest one has the real ones: a busy machine is slow."""
FETCH = """
import sys
import llamaswap_py.hub.fetch as fetch
code = fetch.main()
status = open("/proc/self/status").read()  # ru_maxrss begins with what its parent took
print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
sys.exit(code)
"""


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers honestly, but for what `attacks` has for the method and kind of a request."""

    attacks: dict[str, Callable[[Answer], None]] = {}  # noqa: RUF012 (each test makes a class)
    asked: list[tuple[str, str, str]] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        is_list = self.path.startswith("/api/")
        kind = "list" if is_list else self.command
        self.asked.append((self.command, self.path, self.headers.get("authorization", "")))
        self.close_connection = True
        with suppress(OSError):
            attack = self.attacks.get(kind)
            if attack is not None:
                attack(self)
            elif is_list:
                self.say(200, json.dumps(listing()).encode(), {"Content-Type": "application/json"})
            else:
                body = MODEL if self.command == "GET" else b""
                self.say(200, body, {"ETag": f'"{HASH}"', "X-Repo-Commit": COMMIT})

    def say(
        self, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        size = len(MODEL) if self.command == "HEAD" else len(body)
        self.send_response(status)
        for name, value in {"Content-Length": str(length or size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def listing(**changes: Any) -> dict[str, Any]:
    lfs = {"sha256": HASH, "size": len(MODEL), "pointerSize": 135}
    one = {"rfilename": NAME, "size": len(MODEL), "lfs": lfs} | changes.pop("file", {})
    return {"id": REPO, "sha": COMMIT, "siblings": [one], **changes}


def says(body: bytes | dict[str, Any], **headers: str) -> Callable[[Answer], None]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda one: one.say(200, data, {"Content-Type": "application/json", **named})


def leads_to(url: str, status: int = 302) -> Callable[[Answer], None]:
    return lambda one: one.say(status, b"", {"Location": url, "X-Linked-Etag": f'"{HASH}"'}, 0)


def endless(
    start: bytes, chunk: bytes, pause: float = 0.0, status: int = 200
) -> Callable[[Answer], None]:
    def send(one: Answer) -> None:
        one.wfile.write(b"HTTP/1.1 %d OK\r\n" % status + start)
        while True:
            one.wfile.write(chunk)
            one.wfile.flush()
            time.sleep(pause)

    return send


def etag(value: str) -> Callable[[Answer], None]:
    return lambda one: one.say(200, b"", {"ETag": f'"{value}"', "X-Repo-Commit": COMMIT})


BOMB = gzip.compress(b'{"siblings":[' + b"[" * (200 << 20))
MANY = [{"rfilename": f"{'x' * 80}/{n}.bin", "size": 1} for n in range(350_000)]
NAMES = ("../../../outside.gguf", "/tmp/outside.gguf", "a\0b.gguf", "a\nb.gguf", "a\x1b[2J.gguf")
NO_HASH = {"lfs": None}

LISTS: dict[str, Callable[[Answer], None]] = {
    "led to a metadata service": leads_to("http://169.254.169.254/latest/meta-data"),
    "led there by IPv6": leads_to("http://[::ffff:169.254.169.254]/x"),
    "led into the network": leads_to("http://10.255.255.1/x"),
    "led by number": leads_to("http://2852039166/x"),
    "led in a circle": leads_to(f"/api/models/{REPO}?again"),
    "led to a file": leads_to("file:///etc/passwd"),
    "a head of a megabyte": endless(b"X-Long: " + b"x" * (1 << 20), b"\r\n"),
    "a head without end": endless(b"", b"X-More: " + b"x" * 1000 + b"\r\n"),
    "a list without end": endless(b"\r\n", b'{"siblings":[' + b"[" * (1 << 20)),
    "an error without end": endless(b"\r\n", b"x" * (1 << 20), status=500),
    "a list that drips": endless(b"\r\n", b" ", 0.2),
    "a head that drips": endless(b"", b"x", 0.2),
    "much of nothing": says(BOMB, Content_Encoding="gzip"),
    "packed otherwise": says(b"x", Content_Encoding="br"),
    "nested deeply": says(b'{"siblings":' + b"[" * 500_000),
    "skipped deeply": says(b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b',"siblings":[]}'),
    "very many files": says({"sha": COMMIT, "siblings": MANY}),
    "no JSON": says(b"<html>"),
    "another kind of JSON": says({"siblings": "x", "sha": 5}),
    "a commit with a path": says(listing(sha="../../../../outside")),
    "half a character": says(b'{"sha":"\\ud800","siblings":[]}'),
    "a size below nothing": says(listing(file={"size": -5})),
    "a size beyond all": says(listing(file={"size": 10**30})),
    "odd names": says({"sha": COMMIT, "siblings": [{"rfilename": n, "size": 4} for n in NAMES]}),
}
FILES: dict[str, dict[str, Callable[[Answer], None]]] = {
    "led to a metadata service": {"HEAD": leads_to("http://169.254.169.254/x")},
    "led there later": {"GET": leads_to("http://169.254.169.254/x")},
    "an ETag with a path": {
        "list": says(listing(file=NO_HASH)),
        "HEAD": etag("../../../../../outside"),
    },
    "an ETag of dots": {"list": says(listing(file=NO_HASH)), "HEAD": etag("..")},
    "no ETag": {"list": says(listing(file=NO_HASH)), "HEAD": etag("")},
    "more than announced": {"GET": endless(b"\r\n", b"GGUF" * 65536)},
    "more than announced, packed": {
        "GET": lambda one: one.say(
            200, gzip.compress(bytes(200 << 20)), {"Content-Encoding": "gzip"}
        )
    },
    "less than announced": {"GET": lambda one: one.say(200, MODEL[:1000], {})},
    "less than its own length": {"GET": lambda one: one.say(200, MODEL[:99], {}, length=5000)},
    "other bytes": {"GET": lambda one: one.say(200, bytes(len(MODEL)), {})},
    "a file that drips": {"GET": endless(b"\r\n", b"x", 0.2)},
    "an answer that drips": {"HEAD": endless(b"", b"x", 0.2)},
    "wait for thirty years": {
        "GET": lambda one: one.say(429, b"", {"Retry-After": "1000000000"}),
    },
    "a head without end": {"GET": endless(b"", b"X-More: " + b"x" * 1000 + b"\r\n")},
    "an error without end": {"HEAD": leads_to("/moved"), "GET": endless(b"\r\n", b"x", status=403)},
}


@contextmanager
def hostile(**attacks: Callable[[Answer], None]) -> Iterator[tuple[str, type[Answer]]]:
    kind = type("Answer", (Answer,), {"attacks": attacks, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
    finally:
        server.shutdown()
        server.socket.close()
        thread.join(60)


def fetch(url: str, folder: Path, token: str = "", *, honest: bool = False) -> Step:
    """Run a download of the repository; it must end, write within its folder, and say how."""
    env = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "HF_HUB_DOWNLOAD_TIMEOUT": "30" if honest else "2",
        "TMPDIR": str(folder),
    }
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", FETCH if honest else SHORT + FETCH],
        input=msgspec.json.encode(Order(REPO, tag="Q4_K_M")),
        capture_output=True,
        env=env,
        timeout=90,
        check=False,
    )
    said = done.stderr.decode()
    assert "Traceback" not in said, said
    assert time.monotonic() - begun < 60
    assert int(said.split()[-1]) << 10 < MEMORY, said
    step: Step = msgspec.json.decode(done.stdout.splitlines()[-1], type=Step)
    assert (step.state == "done") == (done.returncode == 0)
    assert {one.name for one in folder.iterdir()} <= {"hub"}
    assert not list(folder.rglob("*outside*"))
    size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    assert size <= 2 * len(MODEL) + 1000
    return step


def test_an_honest_one_is_believed(tmp_path: Path) -> None:
    with hostile() as (url, _):
        step = fetch(url, tmp_path, honest=True)
        assert step.state == "done", step


@pytest.mark.parametrize("attack", LISTS)
def test_a_list_that_means_harm(attack: str, tmp_path: Path) -> None:
    with hostile(list=LISTS[attack]) as (url, seen):
        step = fetch(url, tmp_path, token="hf_secret")
        assert step.state == "failed"
        assert step.error
        assert step.remedy
        assert not [one for one in seen.asked if not one[1].startswith("/api/")]


@pytest.mark.parametrize("attack", FILES)
def test_a_file_that_means_harm(attack: str, tmp_path: Path) -> None:
    with hostile(**FILES[attack]) as (url, _):
        step = fetch(url, tmp_path)
        assert step.state == "failed"
        assert step.error
        assert not list(tmp_path.rglob("snapshots/**/*.gguf"))
    with hostile() as (url, _):  # what is left of it stands in nobody's way
        step = fetch(url, tmp_path, honest=True)
        assert step.state == "done", step
        assert next(tmp_path.rglob("snapshots/**/*.gguf")).read_bytes() == MODEL


def test_the_token_goes_to_no_other_server(tmp_path: Path) -> None:
    with hostile() as (other, seen):
        lead = leads_to(f"{other}/elsewhere")
        with hostile(HEAD=lead, GET=lead) as (url, first):
            step = fetch(url, tmp_path, token="hf_secret", honest=True)
            assert step.state == "done", step
        assert {token for _, _, token in first.asked} == {"Bearer hf_secret"}
        assert {token for _, _, token in seen.asked} == {""}


@pytest.mark.parametrize(
    ("url", "place", "sent"),
    [
        ("https://hub.test/a", "https://hub.test/b", True),
        ("http://hub.test/a", "https://hub.test/b", True),
        ("https://hub.test/a", "http://hub.test/b", False),
        ("https://hub.test/a", "https://hub.test:444/b", False),
        ("https://hub.test/a", "https://hub.test.evil/b", False),
        ("https://hub.test/a", "https://hub.test@evil/b", False),
    ],
)
def test_the_token_goes_where_it_is_as_safe(url: str, place: str, sent: bool) -> None:
    headers = headers_for(place, url, {"Authorization": "Bearer x", "a": "b"})
    assert ("Authorization" in headers) is sent


def test_a_public_hub_cannot_lead_into_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is sent there, and none to a name that has come to mean such an address."""
    names = {"hub.test": "8.8.8.8", "cdn.test": "93.184.216.34", "evil.test": "127.0.0.1"}

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (names.get(host, host), port))]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    sent: list[str] = []
    tokens: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.host)
        tokens.append(request.headers.get("authorization", ""))
        if "to" in request.url.params:
            return httpx.Response(302, headers={"location": request.url.params["to"]})
        return httpx.Response(200, content=b"x")

    with httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        Guard("https://hub.test").watch(client)
        assert client.get("https://hub.test/?to=https://cdn.test/").text == "x"
        assert sent == ["hub.test", "cdn.test"]
        for place in ("http://hub.test", "https://hub.test:444", "https://cdn.test"):
            client.get(place, headers={"authorization": "secret"})
        assert "secret" not in tokens
        client.get("https://hub.test/?to=https://cdn.test", headers={"authorization": "secret"})
        assert tokens[-2:] == ["secret", ""]
        for place in ("127.0.0.1:8080", "169.254.169.254", "192.168.0.1", "[::1]", "evil.test"):
            sent.clear()
            with pytest.raises(OutgoingError):
                client.get(f"https://hub.test/?to=http://{place}/")
            assert sent == ["hub.test"]


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1", "public"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:7f00:1::", "loopback"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00:ec2::254", "private"),
        ("224.0.0.1", "private"),
    ],
)
def test_what_an_address_is(address: str, kind: str) -> None:
    assert kind_of(address) == kind
