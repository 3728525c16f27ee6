"""`cors.origins`: what is written works, or is refused with the right spelling."""

from __future__ import annotations

import re

import pytest

from llamaswap_py.api.auth import Cors, Origins
from llamaswap_py.config.parse import load_config
from llamaswap_py.errors import ApiError, ConfigError
from tests.unit.api_fakes import FakeSupervisor, ask, make_config

pytestmark = pytest.mark.anyio
MODELS = "ui: none\nmodels: {alpha: {model: /a.gguf}}\n"


def written(*origins: str) -> tuple[str, ...]:
    shown = ", ".join(f'"{one}"' for one in origins)
    text = f"cors: {{origins: [{shown}]}}\n{MODELS}"
    return load_config(text, path=None, base_dir="/", env={}, home="/").cors.origins


WORK = [
    ("chrome-extension://*", ["chrome-extension://abcdefghijklmnop"], ["moz-extension://a"]),
    ("vscode-webview://*", ["vscode-webview://0a1b2c"], ["vscode-file://0a1b2c"]),
    ("moz-extension://*", ["moz-extension://0f3c-11"], ["https://moz-extension"]),
    ("app://obsidian.md", ["app://obsidian.md"], ["app://other.md", "http://obsidian.md"]),
    ("tauri://localhost", ["tauri://localhost"], ["tauri://localhost.evil"]),
    ("file://*", ["file://"], ["null"]),
    ("file://", ["file://"], ["null"]),
    (
        "http://localhost:*",
        ["http://localhost", "http://localhost:3000"],
        ["https://localhost", "http://localhost.evil.example", "http://localhost:3000.evil"],
    ),
    ("http://localhost", ["http://localhost"], ["http://localhost:3000"]),
    ("http://*:3000", ["http://a.lan:3000", "http://[::1]:3000"], ["http://a.lan"]),
    ("http://[::1]:*", ["http://[::1]", "http://[::1]:80"], ["http://[::2]"]),
    (
        "https://*.lan",
        ["https://a.lan", "https://b.a.lan"],
        [
            "https://lan",
            "https://evil-lan",
            "https://a.lan:1",
            "https://a.lan.evil",
            "http://a.lan",
        ],
    ),
    ("https://*", ["https://a", "https://a.b:1"], ["http://a", "https://a/b"]),
    ("https://Chat.LAN/", ["https://chat.lan"], ["https://chat.lan:444"]),
    ("https://chat.lan:443", ["https://chat.lan"], []),
    ("http://chat.lan:080", ["http://chat.lan"], []),
    ("http://[0:0:0:0:0:0:0:1]", ["http://[::1]"], []),
    ("https://xn--bro-hoa.lan", ["https://xn--bro-hoa.lan"], []),
    ("*", ["https://a", "null", "app://x"], []),
    ("null", ["null"], ["nullx"]),
]


@pytest.mark.parametrize(("text", "yes", "no"), WORK, ids=[one[0] for one in WORK])
def test_what_is_written_matches_what_browsers_send(
    text: str, yes: list[str], no: list[str]
) -> None:
    origins = Origins(written(text))
    for _ in range(2):
        assert [origins.match(one.encode()) for one in yes] == [True] * len(yes)
        assert [origins.match(one.encode()) for one in no] == [False] * len(no)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("localhost", "http://localhost:*"),
        ("localhost:3000", "http://localhost:3000"),
        ("127.0.0.1", "http://127.0.0.1:*"),
        ("chat.lan", "https://chat.lan"),
        ("*.lan", "https://*.lan"),
        ("chat.lan/app", "https://chat.lan"),
        ("chrome-extension", "chrome-extension://*"),
        ("chrome-extension:", "chrome-extension://*"),
        ("https://chat.lan/app", "https://chat.lan"),
        ("https://chat.lan?x", "https://chat.lan"),
        ("wss://chat.lan", "https://chat.lan"),
        ("https://büro.lan", "https://xn--bro-hoa.lan"),
        ("https://chat.lan:port", "https://chat.lan:*"),
        ("https://chat.lan:70000", "https://chat.lan:*"),
        ("https://chat.lan:0", "https://chat.lan:*"),
        ("https://", "https://*"),
        ("https://me@chat.lan", "https://"),
        ("*://localhost", "http://localhost:*"),
        ("*://*.lan:3000", "https://*.lan:3000"),
        ("http://local*", "whole host"),
        ("http://a.*.lan", "whole host"),
        ("http://*lan", "whole host"),
        ("http://127.1", "127.0.0.1"),
        ("http://0x7f.0.0.1", "127.0.0.1"),
        ("http://[::g]", "[::1]"),
        ("http://chat lan", "http"),
    ],
)
def test_what_would_match_nothing_is_refused_with_the_right_spelling(
    text: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        written(text)
    assert "config:1: cors.origins" in str(caught.value)
    assert remedy in str(caught.value).partition(" - ")[2]


def test_two_spellings_of_one_origin() -> None:
    with pytest.raises(ConfigError, match="twice"):
        written("https://a.lan", "https://A.lan:443/")


async def ask_as(origin: str, text: str, method: str = "POST") -> tuple[int, dict[str, str], str]:
    """Send what a page of an origin sends; return status, headers, and the message if refused."""
    headers = {"origin": origin, "host": "127.0.0.1:8080"}
    if method == "OPTIONS":
        headers |= {"access-control-request-method": "POST"}
    supervisor = FakeSupervisor(config=make_config(text))
    body = b'{"model":"alpha"}'
    exchange = await ask(method, "/v1/chat/completions", body, headers, supervisor)
    refused = exchange.status >= 400
    return exchange.status, exchange.headers, exchange.error["message"] if refused else ""


PAGES = [
    *("app://obsidian.md", "chrome-extension://abcdefghijklmnopabcdefghijklmnop", "file://"),
    *(
        "vscode-webview://0a1b2c3d",
        "moz-extension://0f3c-4d",
        "https://chat.lan",
        "tauri://localhost",
    ),
    *("http://192.168.1.7:3000", "http://[fd00::1]:3000", "http://localhost:5173"),
]


@pytest.mark.parametrize("others", ["", 'cors: {origins: ["https://x.lan"]}\n'])
@pytest.mark.parametrize("page", PAGES)
async def test_the_line_that_a_refusal_names_is_the_line_that_works(page: str, others: str) -> None:
    status, headers, message = await ask_as(page, others + MODELS, "OPTIONS")
    assert status == 403
    assert "access-control-allow-origin" not in headers
    line = re.search(r"cors: \{origins: \[.*\]\}", message)
    assert line is not None, message
    told = make_config(f"{line[0]}\n{MODELS}")
    assert set(make_config(others + MODELS).cors.origins) < set(told.cors.origins)
    status, headers, _ = await ask_as(page, f"{line[0]}\n{MODELS}", "OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (204, page)
    status, headers, _ = await ask_as(page, f"{line[0]}\n{MODELS}")
    assert (status, headers["access-control-allow-origin"]) == (200, page)


async def test_a_trusted_host_name_is_no_reason_to_answer_a_preflight() -> None:
    text = f"allowed_hosts: [obsidian.md]\n{MODELS}"
    status, _, message = await ask_as("app://obsidian.md", text, "OPTIONS")
    assert status == 403
    assert 'cors: {origins: ["app://obsidian.md"]}' in message


async def test_a_page_without_an_origin_is_told_what_helps() -> None:
    status, _, message = await ask_as("null", MODELS)
    assert status == 403
    assert "cors:" not in message
    assert "web server" in message


@pytest.mark.parametrize("cors", ['["*"]', '["http://*"]', '["https://evil.example"]'])
async def test_an_origin_that_is_trusted_makes_no_host_trusted(cors: str) -> None:
    supervisor = FakeSupervisor(config=make_config(f"cors: {{origins: {cors}}}\n{MODELS}"))
    for host in ("evil.example", "https://evil.example", "http://evil.example"):
        headers = {"host": host, "origin": "https://evil.example"}
        exchange = await ask("POST", "/v1/completions", b"{}", headers, supervisor)
        assert exchange.status == 403
        shown = "not HOST or HOST:PORT" if ":" in host else "allowed_hosts"
        assert shown in exchange.error["message"]


def test_a_preflight_into_a_private_network_is_answered() -> None:
    from tests.unit.api_fakes import make_head

    headers = {
        "origin": "https://a.lan",
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    answer = Cors(["https://a.lan"]).preflight(make_head("OPTIONS", "/", headers))
    assert answer is not None
    assert dict(answer)[b"access-control-allow-private-network"] == b"true"
    with pytest.raises(ApiError):
        Cors([]).preflight(make_head("OPTIONS", "/", headers))
