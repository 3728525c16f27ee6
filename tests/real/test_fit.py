"""What a file leaves open is chosen so that the model fits, and everybody says what was chosen."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llamaswap_py.devices import Device
from llamaswap_py.supervisor.strangers import SteadyStrangers
from tests.real.harness import Lswap

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
TRAINED = 1048576
SAID = "I fit if you let me."
SMALL = {"devices": {"host": "1GiB"}, "margin": "128MiB", "cache_ram": "0"}
"""A machine on which the whole context (32 GiB) has no place, nor the usual 32k (1 GiB)."""


def long_context(lab: Lab) -> Path:
    """Return a model of 7 MiB whose trained context takes 32 GiB: 32 KiB a token."""
    return lab.write_model("long-context", SAID, layers=256, width=64, n_ctx_train=TRAINED)


def written(lab: Lab, config: dict[str, Any]) -> Path:
    path = lab.folder / "fit.yaml"
    path.write_text(yaml.safe_dump({"engine": lab.engine, **config}))
    return path


@pytest.mark.parametrize("keys", [{}, {"fit": "shrink"}, {"fit": {"favor": "context"}}])
async def test_a_model_whose_context_has_no_place_runs_with_less(
    lab: Lab, keys: dict[str, Any]
) -> None:
    models = {"open": {"model": str(long_context(lab)), **keys}}
    config = lab.config(models, memory=SMALL, defaults={"args": {"threads": 1}})
    (lab.folder / "fit.yaml").write_text(yaml.safe_dump(config))
    checked = await lab.cli("check", str(lab.folder / "fit.yaml"))
    assert checked.out.splitlines()[-1].endswith(": fine"), checked.out
    server = Lswap(lab.folder / "fit.yaml", lab.environment())
    async with server.running():
        assert await server.chat("open") == SAID
        model = await server.model("open")
        context = model.context_per_request
        assert context is not None
        assert 8192 <= context < 32768
        (instance,) = [one for one in (await server.state()).instances if one.preset == "open"]
        assert instance.n_ctx == context, "llama-server gives what was chosen"
        assert f"--ctx-size {context}" in " ".join(model.args)
        assert model.args.count("--fit") == 1
        said = f"{context:,} of {TRAINED:,} context: chosen for 1 GiB less 128 MiB"
        assert model.chosen == said
        assert f"{context:,}" in checked.out
        for command in ("why", "models"):
            done = await lab.cli(command, "open", "--url", server.url)
            assert said in done.out, command
        shown = (await server.client.get("/v1/models/open")).json()
        assert shown["chosen"] == said
        assert shown["meta"]["n_ctx"] == context
        ollama = (await server.client.post("/api/show", json={"model": "open"})).json()
        assert said in ollama["modelfile"]
        assert f"num_ctx                        {context}" in ollama["parameters"]
        await server.stop()


async def test_what_runs_out_of_memory_is_loaded_with_less_once(lab: Lab) -> None:
    """The engine has no memory for the first context; the request that asked gets its answer."""
    full = 'case "$*" in *"--ctx-size 32768"*) echo "cudaMalloc failed: out of memory" >&2; exit 1'
    engine = lab.engine_behind(f"{full};; esac  # speaks cmd_child_to_router:state:")
    models = {"open": {"model": str(long_context(lab)), "engine": engine}}
    memory = {**SMALL, "devices": {"host": "4GiB"}}
    config = lab.config(models, memory=memory, defaults={"args": {"threads": 1}})
    (lab.folder / "fit.yaml").write_text(yaml.safe_dump(config))
    server = Lswap(lab.folder / "fit.yaml", lab.environment())
    async with server.running():
        assert await server.chat("open") == SAID
        model = await server.model("open")
        assert model.context_per_request == 24576
        assert model.chosen.endswith("because a load ran out of memory")
        kinds = [one.kind for one in await server.decisions("open")]
        assert kinds.count("reduced") == 1
        await server.stop()


async def test_the_steps_that_were_tried_are_explained(lab: Lab) -> None:
    path = written(lab, {"memory": SMALL, "models": {"open": {"model": str(long_context(lab))}}})
    done = await lab.cli("estimate", "--explain", str(path))
    assert done.code == 0, done.out
    assert "32,768 of 1,048,576 context  host 1" in done.out
    quiet = await lab.cli("estimate", str(path))
    assert "32,768" not in quiet.out
    report = (await lab.cli("estimate", "--explain", "--json", str(path))).json()
    steps = report["models"][0]["steps"]
    assert [one["fits"] for one in steps].count(True) >= 1
    assert not steps[0]["fits"]


async def test_exact_chooses_nothing(lab: Lab) -> None:
    models = {"all": {"model": str(long_context(lab)), "fit": "exact"}}
    done = await lab.cli("check", str(written(lab, {"memory": SMALL, "models": models})))
    assert done.code != 0
    assert "it can never fit" in done.out
    older = {"compat": 0.2, "memory": SMALL, "models": {"all": {"model": str(long_context(lab))}}}
    done = await lab.cli("check", str(written(lab, older)))
    assert "it can never fit" in done.out


@pytest.mark.parametrize("args", [{"ctx-size": 0}, {"ctx-size": "1024k"}])
async def test_what_the_file_says_stands(lab: Lab, args: dict[str, Any]) -> None:
    models = {"all": {"model": str(long_context(lab)), "args": args}}
    done = await lab.cli("check", str(written(lab, {"memory": SMALL, "models": models})))
    assert done.code != 0
    assert "it can never fit" in done.out


async def test_what_has_no_place_at_all_is_refused_with_the_arithmetic(lab: Lab) -> None:
    memory = {**SMALL, "devices": {"host": "256MiB"}}
    models = {"open": {"model": str(long_context(lab))}}
    path = written(lab, {"memory": memory, "models": models})
    done = await lab.cli("check", str(path))
    assert done.code != 0
    assert "fine" not in done.out
    (problem,) = [line for line in done.out.splitlines() if line.startswith("problem:")]
    assert "it can never fit: " in problem


async def test_the_file_pins_and_the_others_fit_beside_it(lab: Lab) -> None:
    memory = {**SMALL, "devices": {"host": "2GiB"}}
    model = str(long_context(lab))
    models = {"open": {"model": model}, "pinned": {"model": model, "pin": True}}
    path = written(lab, {"memory": memory, "models": models})
    report = (await lab.cli("check", "--json", str(path))).json()
    found = {one["id"]: one["context_per_request"] for one in report["models"]}
    assert found["pinned"] == 32768, "it is fitted first, though it stands last"
    assert 8192 <= found["open"] < 32768
    assert sum(one["memory"]["host"] for one in report["models"]) <= (2 << 30) - (128 << 20)


async def test_two_models_run_beside_each_other_by_a_shorter_context(lab: Lab) -> None:
    """Of 32k of context each takes 256 MiB, and the machine lacks 70 MiB for both."""
    names = ("first", "second")
    models = {
        name: {"model": str(lab.write_model(name, SAID, layers=64, width=64, n_ctx_train=TRAINED))}
        for name in names
    }
    defaults = {"args": {"threads": 1}}
    roomy = written(lab, {"memory": SMALL, "models": models, "defaults": defaults})
    report = (await lab.cli("estimate", "--json", str(roomy))).json()
    sizes = [one["memory"]["host"] for one in report["models"]]
    total = (sum(sizes) >> 20) - 70 + 128
    memory = {**SMALL, "devices": {"host": f"{total}MiB"}}
    path = lab.folder / "beside.yaml"
    path.write_text(yaml.safe_dump(lab.config(models, memory=memory, defaults=defaults)))
    server = Lswap(path, lab.environment())
    async with server.running():
        assert await server.chat("first") == SAID
        said = f"16,384 of {TRAINED:,} context: chosen to fit beside first"
        await server.until(
            lambda now: any(said in one.chosen for one in now.models if one.id == "second")
        )
        for name in ("second", *names, *names):
            assert await server.chat(name) == SAID
        state = await server.state()
        assert {one.preset: one.n_ctx for one in state.instances} == {
            "first": 32768,
            "second": 16384,
        }
        assert (state.loads_total, state.evictions_total) == (2, 0)
        assert (await server.model("second")).chosen == said
        await server.stop()


async def test_check_leaves_to_other_programs_what_they_held(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(lab, {"memory": SMALL, "models": {"open": {"model": str(long_context(lab))}}})
    monkeypatch.setenv("XDG_STATE_HOME", lab.environment()["XDG_STATE_HOME"])
    before = (await lab.cli("check", "--json", str(path))).json()["models"][0]
    seen = SteadyStrangers(devices=(Device("host", 1 << 30, 128 << 20, "declared"),))
    seen.record({"host": 256 << 20})
    seen.save()
    report = (await lab.cli("check", "--json", str(path))).json()["models"][0]
    assert report["context_per_request"] < before["context_per_request"]
    assert report["chosen"].endswith("chosen for 1 GiB less 384 MiB")


async def test_an_import_keeps_what_the_source_meant(lab: Lab) -> None:
    model = long_context(lab)
    ini = lab.folder / "models.ini"
    ini.write_text(
        f"version = 1\n[plain]\nmodel = {model}\n[with-target]\nmodel = {model}\n"
        f"fit-target = 2048\n[off]\nmodel = {model}\nfit = off\nc = 512\n"
    )
    out = lab.folder / "from-ini.yaml"
    await lab.cli("import", "llama-cpp", str(ini), "-o", str(out))
    models = yaml.safe_load(out.read_text())["models"]
    assert models["plain"] == {"model": str(model)}
    assert models["with-target"]["fit"] == {"margin": "2048MiB"}
    assert models["off"]["fit"] == "exact"
    swap = lab.folder / "llama-swap.yaml"
    cmd = f"llama-server --port ${{PORT}} -m {model} -fitt 512"
    swap.write_text(yaml.safe_dump({"models": {"swap-fitt": {"cmd": cmd}}}))
    out = lab.folder / "from-swap.yaml"
    await lab.cli("import", "llama-swap", str(swap), "-o", str(out))
    assert yaml.safe_load(out.read_text())["models"]["swap-fitt"]["fit"] == {"margin": "512MiB"}
    for file in ("from-ini.yaml", "from-swap.yaml"):
        done = await lab.cli("check", str(lab.folder / file), LSWAP_LLAMA_SERVER=lab.engine)
        assert done.out.splitlines()[-1].endswith(": fine"), done.out


async def test_a_folder_and_ollamas_models_just_run(lab: Lab) -> None:
    folder = lab.folder / "dir"
    folder.mkdir()
    shutil.copy(long_context(lab), folder / "first.gguf")
    path = written(lab, {"memory": SMALL, "model_dirs": [str(folder)]})
    report = (await lab.cli("check", "--json", str(path))).json()
    (first,) = report["models"]
    assert report["ok"]
    assert 4096 <= first["context_per_request"] < TRAINED
    assert "chosen for 1 GiB less 128 MiB" in first["chosen"]
    manifests = lab.folder / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "llama3.1"
    manifests.mkdir(parents=True)
    blob = lab.folder / "ollama" / "blobs" / f"sha256-{'0' * 64}"
    blob.parent.mkdir()
    shutil.copy(long_context(lab), blob)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'0' * 64}"}
    (manifests / "8b").write_text(json.dumps({"layers": [layer]}))
    out = lab.folder / "ollama.yaml"
    done = await lab.cli("import", "ollama", str(lab.folder / "ollama"), "-o", str(out))
    assert done.code == 0, done.err
    text = out.read_text()
    assert "ctx-size" not in text
    out.write_text(f"memory: {json.dumps(SMALL)}\n{text}")
    report = (await lab.cli("check", "--json", str(out))).json()
    assert report["ok"], report
    assert 4096 <= report["models"][0]["context_per_request"] < TRAINED
