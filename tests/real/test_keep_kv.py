"""`keep_kv`: a conversation survives the eviction of its model, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.storage.kv_files import is_in_memory
from tests.builds import names, require
from tests.real.answers import chat_body, error_of
from tests.real.harness import Lswap, poll

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamaswap_py.snapshot import DecisionView
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

LONG = "the same long story told over and over again; " * 12
"""More than 500 tokens: to these models a letter is one."""
COUNT = "n_prompt_tokens_cache"
NO_COUNT = (
    "`GET /slots` does not say how many tokens a slot holds. `keep_kv` saves nothing, and a "
    "conversation is read again after an eviction"
)
ARGS = {"ctx-size": 4096, "parallel": 2, "threads": 1}


def memory(lab: Lab, **keys: Any) -> dict[str, Any]:
    return {"keep_kv": {"dir": str(lab.folder / "kept"), **keys}}


def files(lab: Lab) -> list[Path]:
    """Return the files of kept slots, unfinished ones too."""
    found = [path for path in (lab.folder / "kept").rglob("*") if path.is_file()]
    return [path for path in found if path.name != ".lock"]


def folders(place: str) -> set[Path]:
    """Return the folders of supervisors below a place."""
    return set(Path(place).glob("lswap-*/kv-*"))


def copied(file: str, to: Path) -> Path:
    to.write_bytes(Path(file).read_bytes())
    return to


async def ask(lswap: Lswap, model: str, story: str = LONG) -> dict[str, Any]:
    """Ask for a few words and return llama-server's timings."""
    body = chat_body(model, max_tokens=4, temperature=0)
    body["messages"] = [{"role": "user", "content": story}]
    response = await lswap.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    timings: dict[str, Any] = response.json()["timings"]
    return timings


def texts(decisions: Iterable[DecisionView], kind: str) -> list[str]:
    return [one.reason for one in decisions if one.kind == kind]


async def swap_out(lswap: Lswap, *, by: str = "beta") -> None:
    """Have another model take the memory."""
    await ask(lswap, by, "hello")
    await lswap.until_state("alpha", "unloaded")


async def test_a_conversation_goes_on_where_it_was(lab: Lab) -> None:
    """With keep_kv next to nothing of it is read again; without it all is."""
    require(lab.engine, COUNT, NO_COUNT)
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args=ARGS),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        first = await ask(lswap, "alpha")
        assert first["cache_n"] == 0
        whole = first["prompt_n"]
        assert whole > 500
        await swap_out(lswap)
        assert (await lswap.state()).kept_kv > 0
        again = await ask(lswap, "alpha", LONG + "And then?")
        assert again["cache_n"] >= whole - 20
        assert again["prompt_n"] < 40
        assert files(lab) == []  # it is the child's again
        assert (await lswap.state()).kept_kv == 0
        decisions = await lswap.decisions("alpha")
        (kept,), (back,) = texts(decisions, "kept"), texts(decisions, "restored")
        assert kept.startswith("1 slot (")
        assert back.startswith("1 slot (")
        # beta is not kept: it reads all of it again.
        story = await ask(lswap, "beta")
        await lswap.until_state("alpha", "unloaded")
        await ask(lswap, "alpha", "hello")
        repeated = await ask(lswap, "beta")
        assert repeated["cache_n"] == 0
        assert repeated["prompt_n"] == story["prompt_n"]
        text = (await lswap.client.get("/metrics")).text
        counted = names(lab.engine, "prompt_tokens_cached_total")  # b9840 does not count it
        assert ('lswap_kept_slots_total{result="reused"} ' in text) == counted
    assert not folders(str(lab.folder / "kept"))  # nothing outlives lswap


async def test_kept_files_are_private(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args=ARGS),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        await swap_out(lswap)
        (file,) = files(lab)
        assert file.stat().st_mode & 0o777 == 0o600
        for folder in (file.parent, file.parent.parent):
            assert folder.stat().st_mode & 0o777 == 0o700


async def test_by_default_conversations_are_kept_in_memory_that_has_room(lab: Lab) -> None:
    if not is_in_memory(Path("/dev/shm")):
        pytest.skip("missing: /dev/shm (a tmpfs mounted there)")
    before = folders("/dev/shm")
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args=ARGS),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory={"keep_kv": {"limit": "64MiB"}}) as lswap:
        await ask(lswap, "alpha")
        await swap_out(lswap)
        (folder,) = folders("/dev/shm") - before
        assert len(os.listdir(folder)) == 2  # the slot and the lock
        assert (await ask(lswap, "alpha"))["cache_n"] > 500
    assert not folders("/dev/shm") - before


async def test_two_slots_are_kept(lab: Lab) -> None:
    """Without room in llama-server's own cache both slots hold their conversation."""
    require(lab.engine, COUNT, NO_COUNT)
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args={**ARGS, "kv-unified": False}),
        "beta": lab.preset("beta", args=ARGS),
    }
    other = "an entirely different matter of some length, which shares nothing. " * 8
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        await ask(lswap, "alpha", other)
        await swap_out(lswap)
        assert len(files(lab)) == 2
        assert (await ask(lswap, "alpha"))["cache_n"] > 400
        assert (await ask(lswap, "alpha", other))["cache_n"] > 400
        # One that was restored and not used since is kept once more.
        await swap_out(lswap)
        assert (await ask(lswap, "alpha"))["cache_n"] > 400
        await swap_out(lswap)
        assert (await ask(lswap, "alpha", other))["cache_n"] > 400


async def test_what_is_short_is_not_kept(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args=ARGS),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha", "hello")
        await swap_out(lswap)
        assert files(lab) == []
        assert texts(await lswap.decisions("alpha"), "kept") == []


async def test_another_version_of_a_model_gets_nothing(lab: Lab) -> None:
    """A file that was replaced is another model, whatever its name."""
    alpha = lab.preset("alpha", keep_kv=True, args=ARGS)
    models = {"alpha": alpha, "beta": lab.preset("beta", args=ARGS)}
    copy = copied(alpha["model"], lab.folder / "copy.gguf")
    alpha["model"] = str(copy)
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        await swap_out(lswap)
        assert len(files(lab)) == 1
        os.replace(copied(str(copy), lab.folder / "other.gguf"), copy)
        assert (await ask(lswap, "alpha"))["cache_n"] == 0
        assert files(lab) == []
        assert texts(await lswap.decisions("alpha"), "restored") == []


async def test_unload_and_a_changed_file_forget(lab: Lab) -> None:
    alpha = lab.preset("alpha", keep_kv=True, args=ARGS)
    models = {"alpha": alpha, "beta": lab.preset("beta", args=ARGS)}
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        assert (await lswap.client.post("/lswap/v1/models/alpha/unload")).status_code == 200
        await lswap.until_state("alpha", "unloaded")
        assert files(lab) == []
        await ask(lswap, "alpha")
        await swap_out(lswap)
        assert len(files(lab)) == 1
        alpha["args"] = {**ARGS, "ctx-size": 2048}
        lab.write_config(models, memory=memory(lab))
        assert (await lswap.client.post("/lswap/v1/reload")).status_code == 200
        assert files(lab) == []


async def test_files_that_were_damaged_are_left_alone(lab: Lab) -> None:
    """llama-server ends when it reads a file that was cut; of one in disorder it says so."""
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args=ARGS),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        await swap_out(lswap)
        (file,) = files(lab)
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)
        assert (await ask(lswap, "alpha"))["cache_n"] == 0
        await swap_out(lswap)
        (file,) = files(lab)
        before = file.stat()
        with file.open("r+b") as stream:
            stream.write(b"\xff" * 64)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (await ask(lswap, "alpha"))["cache_n"] == 0
        model = await lswap.model("alpha")
        assert (model.state, model.loads) == ("ready", 3)
        assert texts(await lswap.decisions("alpha"), "failed") == []
        assert "1 could not be" in texts(await lswap.decisions("alpha"), "restored")[-1]


async def test_the_bound_holds(lab: Lab) -> None:
    """Of more than fits the oldest goes; what is larger than the bound is not written."""
    names = ("alpha", "beta", "gamma")
    models = {name: lab.preset(name, keep_kv=True, args=ARGS) for name in names}
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        await ask(lswap, "beta")
        await lswap.until_state("alpha", "unloaded")
        one = (await lswap.state()).kept_kv
    assert one > 0
    keys = memory(lab, limit=f"{one * 3 // 2}B")
    async with lab.lswap(models, memory=keys, name="small") as lswap:
        for name in (*names, "alpha"):
            await ask(lswap, name)
            assert (await lswap.state()).kept_kv <= one * 3 // 2
        assert len(files(lab)) == 1  # gamma's
        assert texts(await lswap.decisions("beta"), "kept")
        assert (await ask(lswap, "gamma"))["cache_n"] > 500
    async with lab.lswap(models, memory=memory(lab, limit="1KiB"), name="none") as lswap:
        await ask(lswap, "alpha")
        await swap_out(lswap)
        assert files(lab) == []


async def test_an_eviction_waits_no_longer_than_it_may(lab: Lab) -> None:
    """A child that never finishes its save is killed at the deadline, and the other one loads."""
    env = {"FAKE_SAVE": "hang"}
    models = {
        "alpha": lab.fake("alpha", keep_kv=True, env=env),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab, timeout="1s")) as lswap:
        await lswap.fake_answer("alpha")
        await swap_out(lswap)
        decisions = await lswap.decisions("alpha")
        (said,) = texts(decisions, "not kept")
        assert "1 s" in said
        assert texts(decisions, "failed") == []
        await poll(lambda: _none(lab))


async def _none(lab: Lab) -> bool:
    return files(lab) == []


async def test_a_load_waits_no_longer_than_it_may(lab: Lab) -> None:
    env = {"FAKE_SAVE": "hang-restore"}
    models = {
        "alpha": lab.fake("alpha", keep_kv=True, env=env),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab, timeout="1s")) as lswap:
        await lswap.fake_answer("alpha")
        await swap_out(lswap)
        assert len(files(lab)) == 1
        await lswap.fake_answer("alpha")
        assert files(lab) == []
        (said,) = texts(await lswap.decisions("alpha"), "restored")
        assert said.startswith("0 slots (")


async def test_a_restore_that_does_nothing_is_found_out(lab: Lab) -> None:
    """Three times in a row no answer made use of it: it is off, and the decisions say so."""
    models = {
        "alpha": lab.fake("alpha", keep_kv=True, env={"FAKE_SAVE": "useless"}),
        "beta": lab.preset("beta", args=ARGS),
    }
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        for number in range(1, 4):
            await lswap.fake_answer("alpha")
            await swap_out(lswap)
            assert len(files(lab)) == 1
            await lswap.fake_answer("alpha")

            async def noted(count: int = number) -> bool:
                said = texts(await lswap.decisions("alpha"), "restored")
                return sum("no use" in one for one in said) == count

            await poll(noted)
        assert "is off for it" in texts(await lswap.decisions("alpha"), "restored")[-1]
        await swap_out(lswap)
        assert files(lab) == []
        await lswap.fake_answer("alpha")


async def test_what_a_killed_lswap_left_is_removed(lab: Lab) -> None:
    models = {
        "alpha": lab.preset("alpha", keep_kv=True, args=ARGS),
        "beta": lab.preset("beta", args=ARGS),
    }
    path = lab.write_config(models, memory=memory(lab))
    server = lab.server(path)
    async with server.running():
        await ask(server, "alpha")
        await swap_out(server)
        assert len(files(lab)) == 1
        os.kill(server.pid, 9)
        await server.exited()
    assert len(files(lab)) == 1
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        assert files(lab) == []
        assert (await ask(lswap, "alpha"))["cache_n"] == 0


async def test_clients_cannot_save_or_restore_slots_themselves(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", keep_kv=True, args=ARGS)}
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        await ask(lswap, "alpha")
        for path in (
            "/slots/0?action=save&model=alpha",
            "/upstream/alpha/slots/0?action=save",
            "/upstream/alpha/%73lots/0?action=restore",
        ):
            response = await lswap.client.post(path, json={"filename": "x"})
            assert "keep_kv" in error_of(response, 501)["message"]
        assert files(lab) == []


@pytest.mark.parametrize("whole", [False, True])
async def test_sliding_windows_are_kept_only_whole(lab: Lab, whole: bool) -> None:
    """Of a window llama-server saves too little to go on with (b11434): it is not even tried."""
    from bench.estimate_models import ModelShape, write_model

    path = lab.folder / "windows.gguf"
    shape = ModelShape(*("gemma3", 6, 64, 2, 1, 32, 64), vocabulary=1000, window=256)
    write_model(path, shape)
    preset = {"model": str(path), "memory": {"host": "100MiB"}, "keep_kv": True}
    models = {
        "alpha": {**preset, "args": {**ARGS, "swa-full": whole}},
        "beta": lab.preset("beta", args=ARGS),
    }
    said = await lab.cli("check", str(lab.write_config(models)))
    assert ("sliding windows" in said.out) != whole
    async with lab.lswap(models, memory=memory(lab)) as lswap:
        prompt = [1, *(300 + number % 600 for number in range(1000))]
        asked = {"model": "alpha", "prompt": prompt, "n_predict": 1}
        assert (await lswap.client.post("/completion", json=asked)).status_code == 200
        await swap_out(lswap)
        assert bool(files(lab)) == whole
        asked["prompt"] = [*prompt, 400, 401]
        again = (await lswap.client.post("/completion", json=asked)).json()["timings"]
        assert (again["cache_n"] > 900) == whole


async def test_check_says_where_it_does_nothing(lab: Lab) -> None:
    models = {
        "lora": lab.preset("lora", keep_kv=True, args={**ARGS, "lora": str(lab.write_adapter())}),
        "sleepy": lab.preset("sleepy", keep_kv=True, sleep="1m", args=ARGS),
        "good": lab.preset("good", keep_kv=True, args=ARGS),
    }
    said = await lab.cli("check", str(lab.write_config(models)))
    assert said.code == 0, said.err
    warnings = [line for line in said.out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2
    assert "models.lora: keep_kv does nothing" in warnings[0]
    assert "models.sleepy: keep_kv saves nothing once the model sleeps" in warnings[1]
    models["good"]["args"] = {**ARGS, "slot-save-path": str(lab.folder)}
    said = await lab.cli("check", str(lab.write_config(models)))
    assert said.code == 1
    assert "keep_kv has its own folder for slots" in said.out
