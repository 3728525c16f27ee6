"""What no other test tries of an older llama-server: `make compat` runs it with each build.

A test skips, and says why, if the build lacks what it is about. The reason is printed below the
table of docs/compatibility.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.options import table_of
from llamaswap_py.llamacpp.output import STATE_PREFIX
from tests.builds import require
from tests.real.answers import error_of, instance_of
from tests.real.test_routes import registered, served
from tests.sources import source_of

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.probe import Engine
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

PADDED = 1500
"""MiB of a model that takes a while to read."""
RENAMED: dict[str, dict[str, Any]] = {
    "load-mode": {"load-mode": "none"},
    "no-mmap": {"no-mmap": True},
    "mlock off": {"mlock": False},
    "direct-io": {"direct-io": False},
    "draft-max": {"draft-max": 5},
    "spec-draft-n-max": {"spec-draft-n-max": 5},
    "draft-min": {"draft-min": 1},
    "temp": {"temp": 0.5},
    "temperature": {"temperature": 0.5},
    "webui": {"no-webui": True},
    "ui": {"no-ui": True},
    "swa-checkpoints": {"swa-checkpoints": 4},
    "ctx-checkpoints": {"ctx-checkpoints": 4},
}
"""Options that llama.cpp renamed or merged within these builds, in each spelling."""


async def test_the_bytes_of_a_load_are_counted(lab: Lab) -> None:
    async with lab.lswap({"heavy": lab.heavy("heavy", mib=PADDED)}) as lswap:
        await lswap.client.post("/lswap/v1/models/heavy/load", params={"wait": "false"})
        await lswap.until(lambda now: any(0 < (one.progress or 0) < 1 for one in now.instances))
        assert await lswap.chat("heavy") == lab.sentence("heavy")


async def test_the_stages_of_a_load_are_told(lab: Lab) -> None:
    lacking = "llama-server does not tell it. lswap shows the bytes read as the progress of a load"
    require(lab.engine, STATE_PREFIX, lacking)
    async with lab.lswap({"heavy": lab.heavy("heavy", mib=PADDED)}) as lswap:
        await lswap.client.post("/lswap/v1/models/heavy/load", params={"wait": "false"})
        await lswap.until(lambda now: any(one.stage for one in now.instances))
        assert await lswap.chat("heavy") == lab.sentence("heavy")


async def test_json_logs(engine: Engine) -> None:
    if not engine.features.log_jsonl:
        pytest.skip("llama-server has no `--log-jsonl`. lswap reads its plain log")


async def test_out_of_memory_on_the_host(lab: Lab) -> None:
    """The limit of the process's address space stands for a host that is full."""
    full = lab.engine_behind('case "$*" in *--model*) ulimit -v 1200000;; esac')
    bad = lab.heavy("heavy", mib=PADDED, engine=full)
    async with lab.lswap({"heavy": bad}) as lswap:
        error = error_of(await lswap.post_chat("heavy"), 503)
        assert (error["code"], error["failure"]) == ("model_failed", "out_of_memory"), error


@pytest.mark.parametrize("said", RENAMED)
async def test_a_renamed_option_is_spelled_as_the_engine_knows_it(
    lab: Lab, engine: Engine, said: str
) -> None:
    """The file has one spelling; the engine gets its own, and loads."""
    table = table_of(engine.options)
    async with lab.lswap({"alpha": lab.preset("alpha", args=RENAMED[said])}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        words = [one for one in (await lswap.model("alpha")).args if one.startswith("--")]
        assert [one for one in words if not table.knows(one[2:])] == []


async def test_a_dry_run(lab: Lab, engine: Engine) -> None:
    if engine.fit_params is None:
        pytest.skip("there is no llama-fit-params. lswap estimates by formula")
    preset = lab.preset("alpha")
    del preset["memory"]
    config = lab.write_config({"alpha": preset})
    done = await lab.cli("estimate", "--json", str(config))
    assert done.code == 0, done.err
    (model,) = done.json()["models"]
    assert "no dry run" not in done.out, done.out
    assert model["source"] == "dry-run", model


async def test_devices_are_listed(lab: Lab) -> None:
    """`lswap engine doctor` asks the engine for its devices."""
    done = await lab.cli("engine", "doctor", "--json", LSWAP_LLAMA_SERVER=lab.engine)
    (check,) = [one for one in done.json()["checks"] if one["name"].endswith(" devices")][:1]
    assert check["state"] == "ok", check


def test_every_route_of_the_sources_has_a_key(llama_server: str) -> None:
    """Each route that the build registers is served, or refused by name."""
    try:
        routes = registered(source_of(Path(llama_server)))
    except EngineError as error:
        pytest.skip(f"its sources are not here ({error.message})")
    assert len(routes) > 30, "they are registered in another way"
    if unknown := [" ".join(one) for one in sorted(routes) if not served(*one)]:
        said = ", ".join(f"`{one}`" for one in unknown)
        pytest.skip(f"lswap does not serve {said}; with an admin key `/upstream` reaches it")


async def test_two_models_take_turns(lab: Lab) -> None:
    async with lab.lswap({name: lab.preset(name) for name in ("alpha", "beta")}) as lswap:
        for name in ("alpha", "beta", "alpha"):
            assert await lswap.chat(name) == lab.sentence(name)
        state = await lswap.state()
        assert (state.loads_total, state.evictions_total) == (3, 2)
        assert instance_of(state, "alpha").state == "ready"
        kinds = {one.kind for one in await lswap.decisions()}
        assert "failed" not in kinds
