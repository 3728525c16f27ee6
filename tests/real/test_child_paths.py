"""Paths below /upstream and at lswap's own routes: a child reads in them what lswap judged.

The real llama-server decides what a spelling means: it gets each one directly, too.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.fakes import echo_program
from tests.real.answers import error_of
from tests.real.test_api_keys import ADMIN
from tests.real.test_rights import as_key, write_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
TARGETS: Final = 4000
SEED: Final = 14
ANN: Final = as_key("ann")
GUARDED: Final = (
    *(("POST", "/props"), ("POST", "/lora-adapters"), ("POST", "/tools"), ("GET", "/tools")),
    *(("GET", "/slots"), ("POST", "/slots/0"), ("POST", "/slots/7"), ("POST", "/cors-proxy")),
    *(("POST", "/v1/streams/lookup"), ("DELETE", "/v1/stream")),
)
"""Routes that an inference key may not use, and that a request without sense does no harm at."""
OPEN: Final = (("POST", "/tokenize"), ("GET", "/props"), ("GET", "/v1/models"))


class Answer(NamedTuple):
    status: int
    body: bytes


def program() -> Preset:
    command = [sys.executable, echo_program.__file__, "{port}"]
    return {"cmd": command, "memory": {"host": "100MiB"}}


async def _ask(
    place: Path | tuple[str, int], method: str, target: str, key: str | None = None
) -> Answer:
    """Send a target exactly as it is, once more where the connection broke: that tells nothing."""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if key is not None:
        head += f"Authorization: Bearer {key}\r\n"
    if method != "GET":
        head += "Content-Length: 2\r\nContent-Type: application/json\r\n\r\n[]"
    else:
        head += "\r\n"
    for _ in range(3):
        start, _, body = (await _exchange(place, head.encode("ascii"))).partition(b"\r\n\r\n")
        if start and (status := int(start.split()[1])) != 502:
            break
    return Answer(status, body)


async def _exchange(place: Path | tuple[str, int], data: bytes) -> bytes:
    """Send bytes on a connection of their own; return all that comes, nothing where it breaks."""
    if isinstance(place, tuple):
        reader, writer = await asyncio.open_connection(*place)
    else:
        reader, writer = await asyncio.open_unix_connection(place)
    try:
        writer.write(data)
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def _address(lswap: Lswap) -> tuple[str, int]:
    host, _, port = lswap.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def _odd_spellings(seed: int) -> Iterator[tuple[str, str]]:
    """Yield methods and paths: known routes with one to three odd things in each."""
    chance = random.Random(seed)

    def escape(char: str) -> str:
        code = ord(char)
        kinds = (f"%{code:02x}", f"%{code:02X}", f"%u{code:04x}", f"%25{code:02x}", f"%U{code:04x}")
        wide = (f"%{0xC0 | code >> 6:02X}%{0x80 | code & 63:02X}", char.swapcase())
        return chance.choice((*kinds, *kinds[:2], *wide))

    def insert() -> str:
        lone = f"%u{chance.randrange(0xD800, 0xE000):04X}"
        some = (
            "%ED%A0%80",
            "%00",
            "%",
            "%u",
            "%u12",
            "%zz",
            "%20",
            "%09",
            "+",
            ";x=1",
            "%3B",
            "%C3%A9",
        )
        return chance.choice(
            (lone, lone, *some, "%3Fx", "%23", ".", "%2e", "%5C", "%25", "%e2%80%8b")
        )

    def slashes() -> str:
        return chance.choice(
            ("//", "/./", "/%2e/", "/x/../", "/x/%2E%2e/", "%2F", "/;x/", "%5c", "/%2F")
        )

    while True:
        method, path = chance.choice((*GUARDED, *GUARDED, *OPEN))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(1, len(path) + 1)
            match chance.randrange(4):
                case 0 if at < len(path) and path[at] not in "%/":
                    path = path[:at] + escape(path[at]) + path[at + 1 :]
                case 1:
                    path = path[:at] + insert() + path[at:]
                case 2:
                    at = path.rfind("/", 0, at + 1)
                    path = path[:at] + slashes() + path[at + 1 :]
                case _:
                    path += chance.choice(
                        ("/", "%2F", "%20", "?", "?x=1", "?action=%73ave", "/.", "/%u")
                    )
        if path.startswith("/"):
            yield method, path


async def _models(lab: Lab) -> tuple[dict[str, Preset], dict[str, Any]]:
    args = {"props": True, "tools": "read_file", "slot-save-path": str(lab.folder)}
    return {"alpha": lab.preset("alpha", args=args)}, write_keys(lab.folder, ann={})


async def test_no_spelling_means_more_at_the_child_than_here(lab: Lab) -> None:
    """What it reads as a guarded route, an inference key gets 400 or 403 for."""
    models, keys = await _models(lab)
    async with lab.lswap(models, keys=keys) as lswap:
        await lswap.client.post("/lswap/v1/models/alpha/load?wait=true", headers=ADMIN)
        (child,) = lab.folder.rglob("*.sock")
        means = {await _ask(child, *route): route for route in GUARDED}
        unknown = await _ask(child, "POST", "/nowhere")
        assert unknown not in means
        assert not any([await _ask(child, *route) in means for route in OPEN])
        assert len(means) == len(GUARDED) - 2, "props and adapters answer alike, so do two slots"
        here, spelled, served = _address(lswap), _odd_spellings(SEED), 0
        for _ in range(TARGETS):
            method, path = next(spelled)
            there = await _ask(child, method, path)
            ann = await _ask(here, method, f"/upstream/alpha{path}", "ann")
            boss = await _ask(here, method, f"/upstream/alpha{path}", "boss")
            what = (method, path, there, ann, boss)
            assert boss.status == 400 or boss == there, what
            if (method, path) not in OPEN and there in means:
                served += 1
                assert ann.status in (400, 403), what
            assert ann.status in (400, 403) or ann == there, what
            own = await _ask(
                here, method, path + ("&" if "?" in path else "?") + "model=alpha", "ann"
            )
            if "/stream" not in path:  # lswap's own, which answer like a child's
                assert own not in means, (method, path, own)
        assert served > TARGETS / 40, "the spellings are too odd to mean anything"


@pytest.mark.parametrize("key", [None, "ann", "slots"])
async def test_no_spelling_writes_into_the_folder_of_kept_slots(lab: Lab, key: str | None) -> None:
    keys = write_keys(lab.folder, ann={}, slots={"rights": ["slots"]}) if key else {}
    folder = lab.folder / "kv"
    args = {"parallel": 1, "threads": 1}
    models = {"alpha": lab.preset("alpha", keep_kv=True, args=args)}
    memory = {"keep_kv": {"dir": str(folder), "limit": "50MiB"}}
    named: dict[str, Any] = {} if key is None else {"keys": keys}
    async with lab.lswap(models, memory=memory, **named) as lswap:
        headers = {} if key is None else as_key(key)
        body = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
        answer = await lswap.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        before = {one for one in folder.rglob("*") if one.is_file()}
        for start, end in (("/upstream/alpha", "?action=save"), ("", "?action=save&model=alpha")):
            for path in (
                *("/slots/0", "/slots/%30", "/%73lots/0", "/slots/0/", "/slots//0", "//slots/0"),
                *("/slo%uD800ts/0", "/%u0073lots/0", "/slots/0%uDFFF", "/slots%uD800/0"),
                *("/slots%2F0", "/%uD800/slots/0", "/slots/./0", "/x/../slots/0", "/SLOTS/0"),
            ):
                for form in ("application/json", "application/x-www-form-urlencoded"):
                    content = b'{"filename": "attack"}' if "json" in form else b"action=save"
                    given = {**headers, "content-type": form}
                    target = f"{start}{path}{end}"
                    status = await _post(lswap, target, given, content)
                    assert status in (400, 403, 404, 501), target
        assert {one for one in folder.rglob("*") if one.is_file()} == before


async def _post(lswap: Lswap, target: str, headers: dict[str, str], body: bytes) -> int:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}"
    data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    return int((await _exchange(_address(lswap), data)).split()[1])


async def test_tools_and_routes_of_a_later_engine_take_an_admin_key(lab: Lab) -> None:
    args = {"tools": "exec_shell_command"}
    models = {"alpha": lab.preset("alpha", args=args)}
    keys = write_keys(lab.folder, ann={})
    body = {"tool": "exec_shell_command", "params": {"command": "echo $((6 * 7))"}}
    async with lab.lswap(models, keys=keys) as lswap:
        for headers, status in ((ANN, 403), (ADMIN, 200)):
            answer = await lswap.client.post("/upstream/alpha/tools", json=body, headers=headers)
            assert answer.status_code == status
            assert ("42" in answer.text) == (status == 200)
        answer = await lswap.client.post("/upstream/alpha/v9/new", json={}, headers=ANN)
        assert "POST /v9/new of alpha" in error_of(answer, 403)["message"]
        answer = await lswap.client.post("/upstream/alpha/v9/new", json={}, headers=ADMIN)
        assert answer.status_code == 404
    async with lab.lswap(models) as lswap:  # without keys it is the child that answers
        answer = await lswap.client.post("/upstream/alpha/v9/new", json={})
        assert (answer.status_code, answer.headers["x-lswap-model"]) == (404, "alpha")


async def test_slots_show_the_words_of_others_to_no_key_without_the_right(lab: Lab) -> None:
    """llama-server shows there how an answer began that a client had it continue."""
    keys = write_keys(lab.folder, ann={}, bob={}, eve={"rights": ["slots"]})
    async with lab.lswap({"alpha": lab.preset("alpha")}, keys=keys) as lswap:
        said: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "SECRET"}]
        body = {"model": "alpha", "messages": said}
        answer = await lswap.client.post("/v1/chat/completions", json=body, headers=as_key("bob"))
        assert answer.status_code == 200
        for path in ("/slots?model=alpha", "/upstream/alpha/slots"):
            answer = await lswap.client.get(path, headers=ANN)
            assert "'slots'" in error_of(answer, 403)["message"]
            answer = await lswap.client.get(path, headers=as_key("eve"))
            assert answer.status_code == 200
        for path in ("props", "metrics", "lora-adapters", "v1/models"):
            answer = await lswap.client.get(f"/upstream/alpha/{path}", headers=ANN)
            assert answer.status_code == 200
            assert "SECRET" not in answer.text


async def test_a_program_keeps_the_paths_of_its_own(lab: Lab) -> None:
    """Spaces, letters, escaped slashes: what a web interface asks for comes as it was asked."""
    keys = write_keys(lab.folder, ann={})
    async with lab.lswap({"ui": program()}, keys=keys) as lswap:
        here = _address(lswap)
        await lswap.client.post("/lswap/v1/models/ui/load?wait=true", headers=ADMIN)
        kept = (
            "/",
            "/view?filename=a%20b%2Fc.png&type=output&type=%uD800",
            "/userdata/workflows%2Fmy%20flow.json?overwrite=true",
            "/%C3%A9t%C3%A9.html",
            "/a+b;c=1/x%2By",
            "//double//",
            "/proxy/https://example.org/x",
            "/v1/load_lora_adapter",
            "/sdapi/v1/txt2img",
            "/Props.html",
        )
        for path in kept:
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                answer = await _ask(here, method, f"/upstream/ui{path}", "ann")
                expected = b'{"method": "%b", "target": "%b"}' % (method.encode(), path.encode())
                assert answer == (200, expected), path
        answer = await _ask(here, "GET", "/upstream/ui/%c3%a9%7Ea", "ann")
        assert b'"/%C3%A9~a"' in answer.body
        for path in ("/PROPS", "//props", "/props/", "/x/..%2Fprops", "/lora%2Dadapters;x"):
            refused = await _ask(here, "POST", f"/upstream/ui{path}", "ann")
            assert refused.status in (400, 403), path
        for path in ("/%25%37%30rops", "/api%2Fdelete", "/models%2Funload", "/lswap/v1//reload"):
            method = "DELETE" if "delete" in path else "POST"
            assert (await _ask(here, method, f"/upstream/ui{path}", "ann")).status == 403, path
            assert (await _ask(here, method, f"/upstream/ui{path}", "boss")).status == 200, path


async def test_a_tunnel_goes_to_the_path_that_was_judged(lab: Lab) -> None:
    models = {"ui": program(), "alpha": lab.preset("alpha")}
    keys = write_keys(lab.folder, ann={})
    upgrade = {"connection": "upgrade", "upgrade": "websocket"}
    async with lab.lswap(models, keys=keys, memory={"devices": {"host": "1GiB"}}) as lswap:
        for model in models:
            await lswap.client.post(f"/lswap/v1/models/{model}/load?wait=true", headers=ADMIN)
        for path, status in (("/to%uD800ols", 400), ("/slots", 403), ("/%74ools", 403)):
            answer = await lswap.client.get(f"/upstream/alpha{path}", headers={**ANN, **upgrade})
            assert answer.status_code == status, path
        answer = await lswap.client.get("/upstream/ui/%7Ews%c3%a9", headers={**ANN, **upgrade})
        assert answer.json()["target"] == "/~ws%C3%A9"
        answer = await lswap.client.get("/upstream/ui/ws%uD800", headers={**ANN, **upgrade})
        assert answer.status_code == 400


async def test_many_parameters_are_a_mistake_of_the_client(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        query = "&".join(f"a{number}=1" for number in range(101))
        for path in ("/props", "/upstream/alpha/props", "/v1/stream", "/lswap/v1/decisions"):
            answer = await lswap.client.get(f"{path}?{query}")
            assert error_of(answer, 400)["code"] == "bad_request"
