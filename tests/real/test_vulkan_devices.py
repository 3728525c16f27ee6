"""lswap on a real device that needs no declaration: Vulkan on a software driver, and RPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.device_lab import ON_SOFTWARE

if TYPE_CHECKING:
    from tests.real.device_lab import RpcServer
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

KEYS: Final[dict[str, Any]] = {"memory": {"devices": "auto"}}
SMALL: Final = {"ctx-size": 256, "parallel": 1, "threads": 1, "load-mode": "none"}


async def devices(lswap: Lswap) -> dict[str, str | None]:
    """Return each device, and within which other one its memory is."""
    return {one.id: one.within for one in (await lswap.state()).devices}


def estimated(lab: Lab, name: str = "alpha", mib: int = 4, **keys: Any) -> dict[str, Any]:
    """Return a preset whose memory is not declared; its layers have so many MiB."""
    path = lab.write_model(f"{name}-of-{mib}", lab.sentence("alpha"), layers=8, pad_bytes=mib << 20)
    return {"model": str(path), **keys, "args": {**SMALL, **keys.get("args", {})}}


async def test_a_device_that_only_the_engine_knows_is_there_and_answers(vulkan_lab: Lab) -> None:
    lab = vulkan_lab
    models = {
        "alpha": estimated(lab),
        "named": estimated(lab, device="Vulkan0"),
        "host": estimated(lab, device="host"),
    }
    async with lab.lswap(models, env=ON_SOFTWARE, **KEYS) as lswap:
        assert await devices(lswap) == {"Vulkan0": "host", "host": None}
        for model in models:
            assert await lswap.chat(model) == lab.sentence("alpha")
        for model in ("alpha", "named"):
            assert "Vulkan0" in ((await lswap.model(model)).footprint or {})
        assert set((await lswap.model("host")).footprint or {}) == {"host"}
        (vulkan, host) = (await lswap.state()).devices
        assert (vulkan.source, vulkan.strangers) == ("engine", None)
        assert 0 < vulkan.used < host.used  # what is on the device is in main memory


async def test_without_the_variable_there_is_no_device(vulkan_lab: Lab) -> None:
    lab = vulkan_lab
    models = {
        "alpha": estimated(lab),
        "own": estimated(lab, env=dict(ON_SOFTWARE)),
    }
    hidden = {"GGML_VK_VISIBLE_DEVICES": ""}
    async with lab.lswap({"alpha": models["alpha"]}, env=hidden, **KEYS) as lswap:
        assert await devices(lswap) == {"host": None}
        assert await lswap.chat("alpha") == lab.sentence("alpha")
    async with lab.lswap(models, env=hidden, **KEYS) as lswap:  # a preset's own variable counts
        assert await devices(lswap) == {"Vulkan0": "host", "host": None}
        assert await lswap.chat("own") == lab.sentence("alpha")
        assert set((await lswap.model("own")).footprint or {}) == {"Vulkan0", "host"}
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert set((await lswap.model("alpha")).footprint or {}) == {"host"}


async def test_models_take_turns_on_a_declared_budget(vulkan_lab: Lab) -> None:
    lab = vulkan_lab
    models = {name: estimated(lab, name, 24, device="Vulkan0") for name in ("one", "two")}
    memory = {"devices": {"Vulkan0": "48MiB"}, "margin": {"Vulkan0": "4MiB"}}
    async with lab.lswap(models, env=ON_SOFTWARE, memory=memory) as lswap:
        for name in ("one", "two", "one"):
            assert await lswap.chat(name) == lab.sentence("alpha")
            footprint = (await lswap.model(name)).footprint or {}
            assert footprint["Vulkan0"] >= 24 << 20
        await lswap.says("Vulkan0: needs")
        assert [(await lswap.model(name)).state for name in models] == ["ready", "unloaded"]


async def test_two_lenders_of_this_machine_are_devices_of_one_memory(
    lab: Lab, rpc_engine: str, rpc_servers: tuple[RpcServer, RpcServer]
) -> None:
    args = {"rpc": ",".join(one.endpoint for one in rpc_servers)}
    models = {
        "both": {
            **estimated(lab, args=args, engine=rpc_engine),
            "device": ["RPC0", "RPC1"],
        },
        "plain": lab.preset("beta"),
    }
    async with lab.lswap(models, **KEYS) as lswap:
        assert await devices(lswap) == {"RPC0": "host", "RPC1": "RPC0", "host": None}
        assert await lswap.chat("both") == lab.sentence("alpha")
        assert await lswap.chat("plain") == lab.sentence("beta")
        footprint = (await lswap.model("both")).footprint or {}
        assert set(footprint) == {"RPC0", "RPC1", "host"}
