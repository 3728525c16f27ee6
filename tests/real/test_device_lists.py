"""The engine's own list of devices: what lswap makes of it, and what a child is told.

The lists are made up; the engine behind them is the real one for the CPU.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

_ENGINE: Final = """#!/bin/bash
# speaks cmd_child_to_router:state:
if [ "$1" = --list-devices ]; then
  . {folder}/{name}.list
  exit
fi
[ "$1" = --version ] || [ "$1" = --help ] && exec {engine} "$@"
echo "$GGML_VK_VISIBLE_DEVICES|$CUDA_VISIBLE_DEVICES|$*" >> {folder}/{name}.told
words=()
while [ $# -gt 0 ]; do
  if [ "$1" = --device ]; then shift; else words+=("$1"); fi
  shift
done
exec {engine} "${{words[@]}}"
"""
ONE: Final = "SYCL0: Some Card (8192 MiB, 8192 MiB free)"
TWO: Final = "SYCL1: Another Card (4096 MiB, 4096 MiB free)"
OTHER: Final = "Vulkan0: Some Card (8100 MiB, 8000 MiB free)"
AUTO: Final = {"devices": "auto"}
SIZES: Final = {"SYCL0": "10MiB", "host": "100MiB"}


class Listing:
    """An engine with a list of its own."""

    def __init__(self, lab: Lab, name: str, *devices: str) -> None:
        self._folder, self._name = lab.folder, name
        self.path = lab.folder / f"llama-server-{name}"
        text = _ENGINE.format(folder=lab.folder, name=name, engine=lab.engine)
        self.path.write_text(text)
        self.path.chmod(0o755)
        self.lists(*devices)

    def lists(self, *devices: str) -> None:
        lines = ["Available devices:", *(f"  {one}" for one in devices)]
        self.does("\n".join(f'echo "{line}"' for line in lines))

    def does(self, script: str) -> None:
        (self._folder / f"{self._name}.list").write_text(script)

    def is_replaced(self) -> None:
        """Make it another file, as a new build of the engine is."""
        self.path.write_text(self.path.read_text() + "\n# another build\n")

    def told(self) -> list[str]:
        """Return `GGML_VK_VISIBLE_DEVICES|CUDA_VISIBLE_DEVICES|words` of each child."""
        return (self._folder / f"{self._name}.told").read_text().splitlines()


async def devices(lswap: Lswap) -> dict[str, tuple[int, str, str | None]]:
    found = (await lswap.state()).devices
    return {one.id: (one.total >> 20, one.source, one.within) for one in found if one.id != "host"}


async def failure_of(lswap: Lswap, model: str) -> str:
    failure = (await lswap.model(model)).failure
    return failure.summary if failure is not None else ""


def device_of(line: str) -> str | None:
    words = line.split()
    return words[words.index("--device") + 1] if "--device" in words else None


async def test_every_device_that_the_engine_lists_is_a_device(lab: Lab) -> None:
    engine = Listing(lab, "a", ONE, TWO)
    models = {
        "alpha": lab.preset("alpha", memory=SIZES, device="SYCL0"),
        "own": lab.preset("alpha", memory=SIZES, args={"device": "SYCL0"}),
        "beside": lab.preset("alpha", memory={"host": "100MiB"}, device="host"),
    }
    keys: dict[str, Any] = {"engine": str(engine.path), "memory": AUTO}
    async with lab.lswap(models, **keys) as lswap:
        assert await devices(lswap) == {
            "SYCL0": (8192, "engine", None),
            "SYCL1": (4096, "engine", None),
        }
        for model in models:
            assert await lswap.chat(model) == lab.sentence("alpha")
        told = engine.told()
        assert [device_of(line) for line in told] == ["SYCL0", "SYCL0", "none"]
        assert told[1].count("--device") == 1
        (sycl, *_) = (await lswap.state()).devices
        assert (sycl.strangers, sycl.used >> 20) == (None, 20)
        metrics = (await lswap.client.get("/metrics")).text
        assert 'lswap_device_info{device="SYCL0",source="engine",within=""} 1.0' in metrics
        assert 'lswap_device_strangers_bytes{device="host"}' in metrics
        assert 'lswap_device_strangers_bytes{device="SYCL0"}' not in metrics
    said = await lab.cli("estimate", str(lswap.config))
    assert "SYCL0: 8 GiB (the engine's list; other programs not measured)" in said.out


async def test_two_engines_with_different_devices_are_side_by_side(lab: Lab) -> None:
    """One card has a name in each; `device` takes either, and its memory is promised once."""
    sycl, vulkan = Listing(lab, "a", ONE, TWO), Listing(lab, "b", OTHER)
    models = {
        "alpha": lab.preset("alpha", memory={"SYCL0": "5GiB"}, device="SYCL0"),
        "beta": lab.preset(
            "beta", memory={"Vulkan0": "5GiB"}, device="SYCL0", engine=str(vulkan.path)
        ),
        "lost": lab.preset("beta", memory=SIZES, device="SYCL1", engine=str(vulkan.path)),
        "gamma": lab.preset("beta", memory={"host": "10MiB"}, engine=lab.engine),
    }
    keys: dict[str, Any] = {"engine": str(sycl.path), "memory": AUTO}
    async with lab.lswap(models, **keys) as lswap:
        assert await devices(lswap) == {
            "SYCL0": (8192, "engine", None),
            "SYCL1": (4096, "engine", None),
            "Vulkan0": (8100, "engine", "SYCL0"),
        }
        for model in ("alpha", "gamma", "beta"):
            await lswap.chat(model)
        assert device_of(vulkan.told()[0]) == "Vulkan0"
        states = [(await lswap.model(name)).state for name in ("alpha", "beta", "gamma")]
        assert states == ["unloaded", "ready", "ready"]
        assert "its engine does not list SYCL1" in await failure_of(lswap, "lost")


async def test_variables_of_the_preset_stand(lab: Lab) -> None:
    """An engine sees other devices with them, so it is asked anew."""
    engine = Listing(lab, "a", "")
    engine.does(
        f'echo "Available devices:"; echo "  {OTHER}"\n'
        '[ -n "$GGML_VK_VISIBLE_DEVICES" ] || echo "  Vulkan1: Other (4096 MiB, 4000 MiB free)"'
    )
    models = {
        "alpha": lab.preset(
            "alpha", memory={"host": "10MiB"}, env={"GGML_VK_VISIBLE_DEVICES": "1"}
        ),
    }
    keys: dict[str, Any] = {"engine": str(engine.path), "memory": AUTO}
    async with lab.lswap(models, **keys) as lswap:
        assert set(await devices(lswap)) == {"Vulkan0", "Vulkan1"}
        await lswap.chat("alpha")
    assert engine.told()[0].startswith("1||")


async def test_a_list_that_fails_is_named_and_lswap_serves(lab: Lab) -> None:
    engine = Listing(lab, "a", ONE)
    engine.does("echo Invalid device index >&2; exit 134")
    keys: dict[str, Any] = {"engine": str(engine.path), "memory": AUTO}
    async with lab.lswap({"alpha": lab.preset("alpha")}, **keys) as lswap:
        await lswap.says("--list-devices failed with status 134: Invalid device index")
        assert await devices(lswap) == {}
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        assert device_of(engine.told()[0]) is None
        engine.lists(ONE)
        await _reload(lswap)  # what failed is asked for again
        assert await devices(lswap) == {"SYCL0": (8192, "engine", None)}


async def test_a_device_that_does_not_tell_its_size_is_not_used(lab: Lab) -> None:
    engine = Listing(lab, "a", "SYCL0: Some Card (0 MiB, 0 MiB free)")
    models = {"alpha": lab.preset("alpha", memory={"host": "10MiB"})}
    keys: dict[str, Any] = {"engine": str(engine.path)}
    async with lab.lswap(models, memory=AUTO, **keys) as lswap:
        assert await devices(lswap) == {}
        await lswap.chat("alpha")
    assert device_of(engine.told()[0]) == "none"
    declared = {"devices": {"SYCL0": "2GiB", "host": "200MiB"}}
    async with lab.lswap(models, memory=declared, **keys) as lswap:
        assert await devices(lswap) == {"SYCL0": (2048, "declared", None)}
        await lswap.chat("alpha")
    assert device_of(engine.told()[1]) is None


async def test_a_reload_finds_devices_that_came_and_went(lab: Lab) -> None:
    engine = Listing(lab, "a", ONE)
    models = {"alpha": lab.preset("alpha", memory=SIZES, device="SYCL0")}
    later = {
        **models,
        "beta": lab.preset("beta", memory={"SYCL1": "10MiB", "host": "10MiB"}, device="SYCL1"),
    }
    keys: dict[str, Any] = {"engine": str(engine.path), "memory": AUTO}
    async with lab.lswap(models, **keys) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        engine.lists(TWO)
        await _reload(lswap)  # nothing that decides the list has changed: it is not asked again
        assert await devices(lswap) == {"SYCL0": (8192, "engine", None)}
        engine.is_replaced()
        lab.write_config(later, **keys)
        await _reload(lswap)
        assert await devices(lswap) == {
            "SYCL1": (4096, "engine", None),
            "SYCL0": (0, "gone", None),
        }
        await lswap.says("stop alpha#1: evicted: other programs took memory: SYCL0")
        assert await lswap.chat("beta") == lab.sentence("beta")
        assert "SYCL0: needs 10 MiB, but 0 B in all" in await failure_of(lswap, "alpha")
        assert device_of(engine.told()[-1]) == "SYCL1"


async def _reload(lswap: Lswap) -> None:
    answer = await lswap.client.post("/lswap/v1/reload")
    assert answer.status_code == 200, json.loads(answer.content)
