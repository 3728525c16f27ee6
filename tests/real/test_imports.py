"""What `lswap import` writes passes `lswap check`, starts, and means what the source meant."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.fakes import fake_program
from tests.real.answers import error_of, model_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


async def imported(lab: Lab, source: dict[str, Any], *, sound: bool = True) -> dict[str, Any]:
    """Return what `lswap import llama-swap` makes of a file, once `lswap check` is content."""
    path, made = lab.folder / "config.yaml", lab.folder / "new.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False))
    done = await lab.cli("import", "llama-swap", str(path), "-o", str(made), "--force")
    assert done.code == 0, done.err
    checked = await lab.cli("check", str(made), LSWAP_LLAMA_SERVER=lab.engine)
    assert checked.code == (0 if sound else 1), checked.out + done.err
    found: dict[str, Any] = yaml.safe_load(made.read_text())
    return found


def server(lab: Lab, name: str, more: str = "") -> str:
    return f"llama-server --port ${{PORT}} -m {lab.preset(name)['model']} -c 512 {more}"


async def serving(lab: Lab, file: dict[str, Any], size: str = "100MiB") -> dict[str, Any]:
    """Return the models of a file as the lab runs them: so large that two do not fit."""
    return {name: {"memory": {"host": size}, **one} for name, one in file["models"].items()}


async def test_options_that_were_renamed_and_lines_that_go_on_are_run(lab: Lab) -> None:
    path = lab.preset("alpha")["model"]
    source = {
        "macros": {"server": "llama-server --port ${PORT} --no-webui", "ctx": 512},
        "models": {
            "lines": {
                "cmd": "# ${server}\n${server} \\\n  # the file\n"
                f"  -m '{path}' \\ \n -c ${{ctx}} --no-mmap --temp 0.1 --alias x"
            },
            "locked": {"cmd": server(lab, "beta", "--mlock -fitt 512 --flash-attn on")},
            "named": {
                "cmd": server(lab, "gamma", "--alias x --api-key secret --log-disable"),
                "aliases": ["gpt-4o"],
                "filters": {"setParamsByID": {"named:short": {"max_tokens": 1}}},
            },
        },
    }
    file = await imported(lab, source)
    async with lab.lswap(await serving(lab, file, "50MiB")) as lswap:
        assert await lswap.chat("lines") == lab.sentence("alpha")
        assert await lswap.chat("locked") == lab.sentence("beta")
        assert await lswap.chat("gpt-4o") == lab.sentence("gamma")
        short = await lswap.post_chat("named:short")
        assert short.json()["usage"]["completion_tokens"] == 1


async def test_a_persistent_group_takes_turns_and_others_never_evict_it(lab: Lab) -> None:
    source = {
        "models": {name: {"cmd": server(lab, name)} for name in ("alpha", "beta", "gamma")},
        "groups": {
            "main": {"exclusive": False, "persistent": True, "members": ["alpha", "beta"]},
            "aux": {"swap": False, "exclusive": False, "members": ["gamma"]},
        },
    }
    file = await imported(lab, source)
    async with lab.lswap(await serving(lab, file), groups=file["groups"]) as lswap:
        assert await lswap.chat("gamma") == lab.sentence("gamma")
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        error = error_of(await lswap.post_chat("gamma"), 400)
        assert error["code"] == "model_too_large"
        assert "`persistent: false` in `groups.main` lets it leave" in error["message"]
        assert "pin" not in error["message"]
        assert await lswap.chat("beta") == lab.sentence("beta")
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert (await lswap.state()).evictions_total == 3


async def test_entries_that_cannot_run_are_listed_and_the_others_serve(lab: Lab) -> None:
    source = {
        "models": {
            "alpha": {"cmd": server(lab, "alpha")},
            "composed": {"cmd": "docker compose up", "proxy": "http://vllm:18020"},
            "hosted": {"proxy": "https://api.example.com/v1"},
        }
    }
    file = await imported(lab, source, sound=False)
    async with lab.lswap(await serving(lab, file)) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        state = await lswap.state()
        for name, said in (("composed", "told where to listen"), ("hosted", "names no file")):
            assert model_of(state, name).state == "failed"
            assert said in error_of(await lswap.post_chat(name), 503)["message"]


async def test_a_program_is_told_its_port(lab: Lab) -> None:
    program = f"{sys.executable} {fake_program.__file__}"
    source = {
        "models": {
            "fixed": {
                "cmd": f"{program} 9876",
                "proxy": "http://127.0.0.1:9876",
                "env": ["MINE=${PORT}"],
                "checkEndpoint": "/env",
                "useModelName": "inside",
            }
        }
    }
    file = await imported(lab, source)
    async with lab.lswap(await serving(lab, file)) as lswap:
        answer = await lswap.client.get("/upstream/fixed/env?autoload=true")
        assert answer.status_code == 200, answer.text
        assert answer.json()["env"]["MINE"] not in ("", "9876", "{port}")
