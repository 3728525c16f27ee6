"""A secret in every place that may hold one, and a look at all that lswap writes or shows.

`test_secrets.py` does so for values of `${env.NAME}`; here they stand in the file, in requests, in
addresses. The file itself, and the command lines and environments of children, are where somebody
has put them.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from llamaswap_py.api import routes
from llamaswap_py.config.api_keys import hash_secret
from tests.fakes import fake_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Cli, Lab

pytestmark = pytest.mark.anyio

PLACES = (
    *("env", "defaults-env", "model-env", "args-key", "args-hf", "extra", "extra-equals"),
    *("variant", "cmd", "cmd-equals", "cmd-bearer", "stop-cmd", "variable", "override"),
    *("admin", "ann", "wrong", "basic", "cookie", "proxy-auth", "query-key", "query-token"),
    *("endpoint", "proxy", "hub-token", "url", "lswap-key", "install", "plain-key"),
    *("import-key", "import-hf", "protocol"),
)
MARK = {place: f"Sentinel7{place.replace('-', 'x')}x0f3" for place in PLACES}
EVERYWHERE = re.compile(rb"Sentinel7(\w+?)x0f3")


def found_in(text: str | bytes) -> set[str]:
    """Return the places whose secret a text has."""
    data = text.encode() if isinstance(text, str) else text
    return {found.decode() for found in EVERYWHERE.findall(data)}


def models_of(lab: Lab) -> dict[str, Any]:
    alpha = lab.preset("alpha", size="10MiB")
    model, memory = alpha["model"], {"host": "10MiB"}
    program = [sys.executable, fake_program.__file__, "{port}"]
    return {
        "alpha": {
            **alpha,
            "env": {"HF_TOKEN": MARK["model-env"], "MY_API_KEY": MARK["model-env"]},
        },
        "keyed": {"model": model, "memory": memory, "args": {"api-key": MARK["args-key"]}},
        "failing": {
            "model": model,
            "memory": memory,
            "args": {"hf-token": MARK["args-hf"], "rope-scale": "x"},
        },
        "extra": {
            "model": model,
            "memory": memory,
            "extra": ["--api-key", MARK["extra"], f"--hf-token={MARK['extra-equals']}", "--no-way"],
        },
        "variants": {
            "model": model,
            "memory": memory,
            "variants": [{"name": "one", "args": {"api-key": MARK["variant"], "rope-scale": "y"}}],
        },
        "prog": {
            "cmd": [
                *program,
                *("--word", "--api-key", MARK["cmd"], f"--password={MARK['cmd-equals']}"),
                *("--header", f"Authorization: Bearer {MARK['cmd-bearer']}"),
            ],
            "stop_cmd": ["false", "--api-key", MARK["stop-cmd"]],
            "memory": memory,
        },
        "far": {"hf": "someone/far:Q4_K_M", "memory": memory},
    }


def keys_file(folder: Path) -> dict[str, str]:
    path = folder / "keys.yaml"
    path.write_text(
        f"keys:\n- {{name: boss, kind: admin, hash: '{hash_secret(MARK['admin'].encode())}'}}\n"
        f"- {{name: ann, hash: '{hash_secret(MARK['ann'].encode())}'}}\n"
    )
    path.chmod(0o600)
    return {"file": str(path)}


def paths() -> list[str]:
    """Return the path of every route that has a GET, and some of children."""
    every = {**routes.ROUTES, **{f"{a}alpha{b}": there for a, b, there in routes.PATTERNS}}
    endless = ("/lswap/v1/events", "/models/sse")
    found = [path for path, there in every.items() if "GET" in there and path not in endless]
    return [*found, "/upstream/alpha/props", "/upstream/alpha/slots", "/nowhere", "/ui/nothing"]


async def ask(lswap: Lswap) -> list[str]:
    secret = {
        "authorization": f"Bearer {MARK['admin']}",
        "cookie": f"session={MARK['cookie']}",
        "proxy-authorization": f"Basic {MARK['proxy-auth']}",
        "sec-websocket-protocol": MARK["protocol"],
    }
    shown = []
    query = f"?key={MARK['query-key']}&api_key={MARK['query-key']}&token={MARK['query-token']}"
    for headers in (
        secret,
        {**secret, "authorization": "", "x-api-key": MARK["ann"]},
        {"authorization": f"Bearer {MARK['wrong']}"},
        {"x-api-key": MARK["wrong"]},
        {"authorization": f"Basic {MARK['basic']}"},
        {"authorization": MARK["basic"]},
    ):
        for path in paths():
            answer = await lswap.client.get(path + query, headers=headers)
            shown.append(f"{path} {answer.headers} {answer.text}")
    for model in ("alpha", "keyed", "failing", "extra", "variants", "prog", "far", "nobody"):
        for body in ({"messages": [{"role": "user", "content": "x"}]}, {"messages": 5}):
            answer = await lswap.client.post(
                f"/v1/chat/completions{query}", json={"model": model, **body}, headers=secret
            )
            shown.append(f"{model} {answer.headers} {answer.text}")
    override = {"args": {"api-key": MARK["override"], "rope-scale": "z"}}
    answer = await lswap.client.post(
        "/lswap/v1/models/alpha/load", json=override, headers=secret, params={"wait": "true"}
    )
    return [*shown, answer.text]


async def run_commands(lab: Lab, lswap: Lswap, env: dict[str, str]) -> list[Cli]:
    own = {**env, "LSWAP_KEY": MARK["admin"]}
    running = ("--url", lswap.url)
    place = lswap.url.removeprefix("http://")
    with_secret = f"http://user:{MARK['url']}@{place}"
    nowhere = f"http://user:{MARK['url']}@127.0.0.1:9"
    plain = lab.folder / "plain.yaml"
    plain.write_text(f"keys:\n- {{name: a, hash: '{MARK['plain-key']}'}}\n")
    plain.chmod(0o600)
    odd = lab.folder / "odd.yaml"
    odd.write_text(f"keys:\n- {{name: a, secret: {MARK['plain-key']}, hash: [{MARK['plain-key']}\n")
    odd.chmod(0o600)
    swap = lab.folder / "swap.yaml"
    swap.write_text(
        f"apiKeys: [{MARK['import-key']}]\nmodels:\n  a:\n    cmd: llama-server --port ${{PORT}} "
        f"-m /a.gguf --api-key {MARK['import-key']} --hf-token {MARK['import-hf']}\n"
    )
    location = f"http://user:{MARK['install']}@127.0.0.1:9/a.tar.gz"
    tried = [
        *((*words, *running) for words in (("ps",), ("ps", "--json"), ("models", "--json"))),
        *(("why", one, *running) for one in ("alpha", "failing", "extra", "prog", "far")),
        *(("logs", one, *running) for one in ("alpha", "failing", "prog")),
        *((*words, *running) for words in (("logs",), ("load", "failing"), ("load", "far"))),
        *((*words, str(lswap.config)) for words in (("check",), ("check", "--json"))),
        *(("estimate", str(lswap.config), *more) for more in ((), ("--json",))),
        *(("ps", "--url", url) for url in (with_secret, nowhere, f"{with_secret}:x")),
        *(("report", "-", *running), ("report", str(lab.folder / "report.md"), *running)),
        *(("report", "-", "--config", str(file), *running) for file in (plain, odd, swap)),
        *(("report", "-", "--url", url) for url in (with_secret, nowhere)),
        *(("status", "--json"), ("engine", "list"), ("engine", "doctor"), ("schema",)),
        ("engine", "install", location, "--sha256", "0" * 64),
        *(("key", "list", "--file", str(file)) for file in (plain, odd)),
        *(("import", "llama-swap", str(swap)), ("pull", "someone/far:Q4_K_M")),
    ]
    done = [await lab.cli(*words, **own) for words in tried]
    wrong = {**env, "LSWAP_KEY": MARK["lswap-key"], "LSWAP_URL": with_secret}
    return [*done, await lab.cli("ps", **wrong)]


async def test_no_secret_of_any_place_is_written_or_shown(lab: Lab) -> None:
    env = {
        "HF_ENDPOINT": f"http://user:{MARK['endpoint']}@127.0.0.1:9",
        "HF_TOKEN": f"hf_{MARK['hub-token']}",
        "FTP_PROXY": f"http://user:{MARK['proxy']}@127.0.0.1:9",
        "HF_HUB_CACHE": str(lab.folder / "hub"),
    }
    logs = lab.folder / "logs"
    shown: list[tuple[str, str]] = []
    async with lab.lswap(
        models_of(lab),
        keys=keys_file(lab.folder),
        env=env,
        log={"dir": str(logs), "level": "debug", "format": "json"},
        capture="on",
        allow_args=True,
        vars={"word": MARK["variable"]},
        defaults={"env": {"ANY_TOKEN": MARK["defaults-env"], "MY_SECRET": "${word}"}},
    ) as lswap:
        shown += [("an answer", text) for text in await ask(lswap)]
        itself = psutil.Process(lswap.pid)
        for one in (itself, *itself.children(recursive=True)):
            line = " ".join(one.cmdline())
            if "llama-server" not in line and fake_program.__file__ not in line:
                shown.append(("a command line", line))
        for done in await run_commands(lab, lswap, env):
            shown += [("a command", done.out), ("a command", done.err)]
            assert "Traceback" not in done.err, done.err
        boss = {"authorization": f"Bearer {MARK['admin']}"}
        said = lswap.config.read_text()
        lswap.config.write_text(f"{said}\nttl: {MARK['variable']}\n")
        shown.append(("a reload", (await lswap.client.post("/lswap/v1/reload", headers=boss)).text))
    shown += [("the log", line) for line in lswap.log]
    written = {"lswap.yaml", "plain.yaml", "odd.yaml", "swap.yaml"}
    looked = 0
    for file in lab.folder.rglob("*"):
        if file.is_file() and file.name not in written and file.suffix != ".gguf":
            looked += 1
            shown.append((str(file.relative_to(lab.folder)), file.read_text(errors="replace")))
    assert looked > 5
    assert any("captures" in place for place, _ in shown)
    leaks = {
        (place, secret): text[max(text.find(secret) - 150, 0) :][:400]
        for place, text in shown
        for secret in found_in(text)
    }
    assert not leaks, "\n".join(f"{key}: {text!r}" for key, text in leaks.items())
