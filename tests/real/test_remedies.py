"""A model that can never fit: everybody says the same of it, and what is said to help does help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.cli import init
from llamaswap_py.devices import Device
from llamaswap_py.estimate.files import cpu_flags
from llamaswap_py.estimate.formula import repackable_kinds
from llamaswap_py.units import GIB, HOST, MIB
from tests.real.answers import error_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        "Q4_0" not in repackable_kinds(cpu_flags()), reason="this CPU rearranges no weights"
    ),
]
HELPS = re.compile(r"with (.+?) it needs ([\d.]+ .iB) and fits")
LARGE = {"devices": {"host": "350MiB"}, "margin": "20MiB", "cache_ram": "40MiB"}


def model(lab: Lab) -> Path:
    """Write a model of which a CPU keeps a rearranged copy, with a large context."""
    return lab.write_model(
        "rearranged",
        lab.sentence("big"),
        layers=4,
        pad_bytes=400 << 20,
        n_ctx_train=131072,
        quantized=True,
    )


def preset(lab: Lab, **args: Any) -> dict[str, Any]:
    return {"model": str(model(lab)), "args": {"ctx-size": 131072, "parallel": 1, **args}}


async def test_check_estimate_up_and_a_request_say_the_same(lab: Lab) -> None:
    """One judgement from one function, and check fails as a request does."""
    path = lab.write_config({"big": preset(lab)}, memory=LARGE)
    check = await lab.cli("check", str(path), "--json")
    estimate = await lab.cli("estimate", str(path), "--json")
    assert (check.code, estimate.code) == (1, 1)
    (problem,) = check.json()["models"][0]["problems"]
    said = problem.partition("it can never fit: ")[2]
    assert estimate.json()["models"][0]["problem"] == f"it can never fit: {said}"
    assert check.json()["models"][0]["memory"] == estimate.json()["models"][0]["memory"]
    async with lab.lswap({"big": preset(lab)}, memory=LARGE) as lswap:
        error = error_of(await lswap.post_chat("big"), 400)
        assert error["code"] == "model_too_large"
        assert said in error["message"]
        assert any("can never fit" in line and "ctx-size: " in line for line in lswap.log)
        listed = await lab.cli("models", "--url", lswap.url)
        assert f"can never fit: {said}" in listed.out
    assert "`memory.cache_ram: 0`" in said
    assert "`ctx-size: " in said
    assert "load-mode" not in said  # the pages beside the rearranged copy are not charged
    assert "memory.margin" not in said  # not even without any
    assert check.out.count("to be estimated") == 0


async def test_every_remedy_that_is_named_works(lab: Lab) -> None:
    """Written into the file one by one, each lets the model load and answer."""
    async with lab.lswap({"big": preset(lab)}, memory=LARGE) as lswap:
        message = error_of(await lswap.post_chat("big"), 400)["message"]
    remedies = [found[1] for found in HELPS.finditer(message)]
    assert len(remedies) >= 2
    for at, words in enumerate(remedies):
        given = dict(re.findall(r"`(\S+): (\S+)`", words))
        memory = LARGE | ({"cache_ram": "0MiB"} if "memory.cache_ram" in given else {})
        args = {name: value for name, value in given.items() if "." not in name}
        name = f"lswap-{at}"
        async with lab.lswap({"big": preset(lab, **args)}, memory=memory, name=name) as lswap:
            assert await lswap.chat("big") == lab.sentence("big")


async def test_the_margin_is_named_if_one_is_left(lab: Lab) -> None:
    args = {"ctx-size": 512, "load-mode": "none", "parallel": 1}
    big = {"model": str(model(lab)), "args": args}
    memory = {"devices": {"host": "240MiB"}, "margin": "150MiB", "cache_ram": "0MiB"}
    async with lab.lswap({"big": big}, memory=memory) as lswap:
        message = error_of(await lswap.post_chat("big"), 400)["message"]
    margin = re.search(r"`memory\.margin: (\S+)` would be enough", message)
    assert margin
    memory["margin"] = margin[1]
    async with lab.lswap({"big": big}, memory=memory, name="lower") as lswap:
        assert await lswap.chat("big") == lab.sentence("big")


async def test_a_pinned_model_in_the_way_is_named(lab: Lab) -> None:
    """With its size and the command; check finds it before anything is loaded."""
    models = {"alpha": lab.preset("alpha", pin=True), "beta": lab.preset("beta")}
    check = await lab.cli("check", str(lab.write_config(models)), "--json")
    assert check.code == 1
    (problem,) = [one for one in check.json()["problems"] if "beta" in one]
    remedy = "pinned alpha (100 MiB) is in the way: `lswap unpin alpha`"
    assert remedy in problem
    async with lab.lswap(models) as lswap:
        await lswap.chat("alpha")
        assert remedy in error_of(await lswap.post_chat("beta"), 400)["message"]
        await lswap.client.post("/lswap/v1/models/alpha/unpin")
        assert await lswap.chat("beta") == lab.sentence("beta")


def test_init_writes_what_fits(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that fits only otherwise, it writes how; check and up agree."""
    folder = lab.folder / "models"
    folder.mkdir()
    (folder / "big.gguf").symlink_to(model(lab))
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", lab.engine)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(lab.folder))
    total = GIB + 145 * MIB  # the margin, and what it needs with a short context
    device = Device(HOST, total, GIB, "declared")
    monkeypatch.setattr(init, "devices_for", lambda *_: (device,))
    text = init.config_text(init.look((folder,)), "c.yaml")
    assert "  big:    # 115.4 MiB, fits: needs host 1" in text
    assert "\n    # ctx-size: 16k " in text
    assert "\n      ctx-size" not in text
