"""Secrets stay where they belong: a mark in each of their places, and a look at all that is shown.

The command lines and environments of children are what the system shows of a process to its user;
docs/security.md says so.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.config.api_keys import hash_secret
from tests.fakes import fake_program
from tests.real.harness import poll

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Cli, Lab

pytestmark = pytest.mark.anyio

MARK = "Sentinel"
ENV = {
    "LSWAP_TEST_ARG": f"{MARK}-of-an-argument",
    "LSWAP_TEST_ENV": f"{MARK}-of-the-environment",
    "LSWAP_TEST_WORD": f"{MARK}-of-a-program",
    "LSWAP_TEST_STOP": f"{MARK}-of-a-stop-command",
    "LSWAP_TEST_FILE": f"{MARK}-of-a-path",
    "HF_TOKEN": f"hf_{MARK}OfTheHub",
}
ADMIN, ANN, WRONG = f"lsk-{MARK}-admin", f"lsk-{MARK}-ann", f"lsk-{MARK}-wrong"
SECRETS = (*ENV.values(), ADMIN, ANN, WRONG)
ROUTES = (
    *("/lswap/v1/state", "/lswap/v1/decisions", "/lswap/v1/requests", "/lswap/v1/streams"),
    *("/lswap/v1/logs", "/lswap/v1/logs/alpha", "/lswap/v1/logs/beta", "/lswap/v1/logs/prog"),
    *("/metrics", "/v1/models", "/models", "/api/tags", "/api/ps", "/lswap/v1/openapi.json", "/"),
    *("/lswap/v1/reservations", "/slots?model=alpha", "/props?model=alpha"),
)


def found_in(text: str | bytes) -> list[str]:
    """Return the secrets that a text has."""
    data = text.encode() if isinstance(text, str) else text
    return [secret for secret in SECRETS if secret.encode() in data]


def write_keys(folder: Path) -> dict[str, str]:
    path = folder / "keys.yaml"
    entries = [f"- {{name: boss, kind: admin, hash: '{hash_secret(ADMIN.encode())}'}}"]
    entries += [f"- {{name: ann, hash: '{hash_secret(ANN.encode())}'}}"]
    path.write_text("keys:\n" + "\n".join(entries) + "\n")
    path.chmod(0o600)
    return {"file": str(path)}


async def ask_everything(lswap: Lswap) -> list[str]:
    """Ask all kinds of questions, good and bad; return what was answered."""
    answers = []
    for headers in (
        {"authorization": f"Bearer {ADMIN}"},
        {"x-api-key": ANN},
        {"authorization": f"Bearer {WRONG}"},
        {"x-api-key": WRONG},
        {"authorization": f"Basic {WRONG}"},
    ):
        for model in ("alpha", "beta", "gamma", "delta", "prog", "nobody"):
            body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
            answer = await lswap.client.post("/v1/chat/completions", json=body, headers=headers)
            answers.append(f"{answer.headers} {answer.text}")
        for path in (*ROUTES, "/nowhere"):
            answer = await lswap.client.get(path, headers=headers)
            answers.append(f"{answer.headers} {answer.text}")
    return answers


async def commands(lab: Lab, lswap: Lswap) -> list[Cli]:
    """Run what shows something of a running lswap, and what reads its configuration."""
    own = {**ENV, "LSWAP_KEY": ADMIN}
    running = ("--url", lswap.url)
    done = [
        await lab.cli(*words, *running, **own)
        for words in (
            *(("ps",), ("ps", "--json"), ("show", "alpha"), ("show", "beta", "--json")),
            *(("why", "alpha"), ("why", "beta"), ("why", "gamma", "--json"), ("logs",)),
            *(("logs", "alpha"), ("logs", "beta"), ("logs", "prog"), ("usage",), ("load", "gamma")),
            *(("report", "-"), ("report", str(lab.folder / "report.md"))),
        )
    ]
    done.append(await lab.cli("ps", "--key", WRONG, *running, **ENV))
    reading = (("check",), ("check", "--json"), ("estimate",))
    return done + [await lab.cli(*words, str(lswap.config), **own) for words in reading]


async def test_no_secret_is_written_or_shown(lab: Lab) -> None:
    """Loads, failures, reloads, wrong keys: a grep of all that lswap writes and shows."""
    memory = {"host": "10MiB"}
    alpha = lab.preset("alpha", size="10MiB")
    model = alpha["model"]
    program = [sys.executable, fake_program.__file__, "{port}", "--word"]
    models = {
        "alpha": {
            **alpha,
            "args": {"chat-template-kwargs": '{"x": "${env.LSWAP_TEST_ARG}"}'},
            "env": {"PASSED_ON": "${env.LSWAP_TEST_ENV}"},
        },
        # Each fails in its own way: the child refuses its arguments, and prints them.
        "beta": {"model": model, "memory": memory, "args": {"rope-scale": "${env.LSWAP_TEST_ARG}"}},
        "gamma": {"model": "/nowhere/${env.LSWAP_TEST_FILE}.gguf", "memory": memory},
        "delta": {"model": model, "args": {"override-tensor": "${env.LSWAP_TEST_ARG}"}},
        "prog": {
            "cmd": [*program, "${env.LSWAP_TEST_WORD}"],
            "stop_cmd": ["false", "${env.LSWAP_TEST_STOP}"],
            "memory": memory,
        },
    }
    folder = lab.folder / "logs"
    keys = write_keys(lab.folder)
    async with lab.lswap(models, keys=keys, env=ENV, log={"dir": str(folder)}) as lswap:
        shown = await ask_everything(lswap)
        boss = {"authorization": f"Bearer {ADMIN}"}
        for name in ("alpha", "prog"):
            await lswap.client.post(f"/lswap/v1/models/{name}/unload?force=true", headers=boss)
        said = lswap.config.read_text()
        lswap.config.write_text(said + "\nttl: ${env.LSWAP_TEST_ARG}\n")
        shown.append((await lswap.client.post("/lswap/v1/reload", headers=boss)).text)
        lswap.config.write_text(said + "\n# changed\n")
        shown.append((await lswap.client.post("/lswap/v1/reload", headers=boss)).text)
        shown += await ask_everything(lswap)
        for done in await commands(lab, lswap):
            assert "Traceback" not in done.err
            shown += [done.out, done.err]
        async with asyncio.timeout(60):
            path = "/lswap/v1/events?after=0"
            async with lswap.client.stream("GET", path, headers=boss) as stream:
                lines = stream.aiter_lines()
                while not any("snapshot" in line or "event" in line for line in shown[-1:]):
                    shown.append(await anext(lines))

        async def logged() -> bool:
            return {"alpha.log", "delta.log", "prog.log"} <= {one.name for one in folder.iterdir()}

        await poll(logged)
    for text in (*shown, *lswap.log):
        assert not found_in(text), text
    assert "${env.LSWAP_TEST_ARG}" in (folder / "alpha.log").read_text()
    looked = 0
    for file in lab.folder.rglob("*"):
        if file.is_file() and file.suffix != ".gguf":
            looked += 1
            assert not found_in(file.read_bytes()), file
    assert looked > 5
