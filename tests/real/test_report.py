"""`lswap report` of a real lswap: what a bug report needs, and nothing that clients sent or got."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

SAID = "Sentinel-of-a-prompt"
# Each makes llama-server write something else about it.
ODD: tuple[dict[str, Any], ...] = (
    {"grammar": f"{SAID} x"},
    {"messages": [{"role": SAID, "content": [{"type": SAID}]}]},
    {"response_format": {"type": SAID}},
    {"temperature": SAID},
    {"json_schema": {"type": SAID, "pattern": SAID}},
    {"stop": SAID, "n_predict": 1},
    {"tools": [{"type": SAID, "function": {"name": SAID, "parameters": {"type": SAID}}}]},
    {"messages": [{"role": "user", "content": SAID * 2000}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": SAID}]}]},
    {"chat_template_kwargs": {SAID: SAID}, "lora": [{"id": SAID}]},
)
PROGRAM = """
import http.server, os, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print("ERROR: failed on", body, flush=True)
        os._exit(3)

print("I serve", flush=True)
socketserver.TCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def parts_of(text: str) -> dict[str, str]:
    _, *found = text.split("\n## ")
    return {one.partition("\n")[0]: one.partition("\n\n")[2] for one in found}


async def ask_oddly(lswap: Lswap, *models: str) -> None:
    plain = {"messages": [{"role": "user", "content": SAID}]}
    for model in models:
        for odd in ({}, *ODD):
            body = {"model": model, **plain, **odd}
            await lswap.client.post("/v1/chat/completions", json=body)
        await lswap.client.post("/v1/completions", json={"model": model, "prompt": SAID})
        await lswap.client.post("/v1/completions", json={"model": model, "prompt": {"x": SAID}})


async def test_it_has_what_is_needed_and_nothing_of_clients(lab: Lab) -> None:
    alpha = lab.preset("alpha", size="10MiB")
    model, memory = alpha["model"], {"host": "10MiB"}
    models = {
        "alpha": alpha,
        "talkative": {"model": model, "memory": memory, "args": {"verbose": True}},
        "failing": {"model": model, "memory": memory, "args": {"rope-scale": "1", "lora": model}},
        "dying": {"cmd": [sys.executable, "-c", PROGRAM, "{port}"], "memory": memory},
    }
    async with lab.lswap(models, log={"level": "debug"}) as lswap:
        await ask_oddly(lswap, "alpha", "talkative")
        for name in ("dying", "failing"):
            body = {"model": name, "messages": [{"role": "user", "content": SAID}]}
            await lswap.client.post("/v1/chat/completions", json=body)
        logs = [(await lab.cli("logs", one, "--url", lswap.url)).out for one in ("alpha", "dying")]
        done = await lab.cli("report", "-", "--url", lswap.url)
        file = lab.folder / "own.md"
        to_file = await lab.cli("report", str(file), "--url", lswap.url)
    assert all(SAID in log for log in logs), "the logs themselves do quote requests"
    assert (done.code, to_file.code) == (0, 0), done.err + to_file.err
    for text in (done.out, done.err, to_file.out, to_file.err, file.read_text()):
        assert SAID not in text
        assert "alpha says hello" not in text
    found = parts_of(done.out)
    assert parts_of(file.read_text()).keys() == found.keys()
    assert "could not be gathered" not in done.out
    assert re.search(r"^    llama-server b\d+-", found["Versions"], re.MULTILINE)
    assert "    failing:\n" in found["Configuration"]
    assert re.search(r"alpha +ready", found["State"])
    assert "failing is failed" in found["Why models are loaded or not"]
    assert "alpha#1 load:" in found["Decisions"]
    assert "state: model alpha, epoch 1, state ready" in found["Events"]
    assert "ready alpha#1" in found["Log of lswap"]
    shown = found["Logs of models"]
    assert "srv  llama_server: model loaded" in shown
    assert "processing task, is_child = 0" in shown
    assert re.search(r"dying \(\w+\), \d+ lines:\n      \[\d+ lines left out\]", shown)
    assert re.search(r"failing \(failed\), \d+ lines:\n      srv", shown), (
        "why a load fails is shown"
    )
    assert "ended with exit code 3: [left out]" in found["Log of lswap"]


async def test_a_key_that_may_not_see_logs_gets_the_rest(lab: Lab) -> None:
    keys = lab.folder / "keys.yaml"
    made = await lab.cli("key", "new", "ann", "--file", str(keys))
    key = re.search(r"lsk-[\w-]+", made.out + made.err)
    assert key is not None
    models = {"alpha": lab.preset("alpha")}
    async with lab.lswap(models, keys={"file": str(keys)}) as lswap:
        for given in (("--key", key[0]), ()):
            done = await lab.cli("report", "-", "--url", lswap.url, *given)
            assert done.code == 0
            assert key[0] not in done.out
            found = parts_of(done.out)
            assert "could not be gathered" in found["Log of lswap"]
            assert ("wants an API key" in found["State"]) is not bool(given)
            assert ("alpha" in found["State"]) is bool(given)
            assert "models:" in found["Configuration"]
