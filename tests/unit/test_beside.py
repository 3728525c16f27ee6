"""The way with less context that fits beside the models in use: when there is one, and which."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.config.preset import variant_presets
from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimate, Estimator
from llamaswap_py.estimate import estimator as module
from llamaswap_py.estimate.fitter import Fitter
from llamaswap_py.scheduler.types import Choice, PoolId
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.supervisor.chooser import Chooser
from llamaswap_py.supervisor.chosen_ways import beside, listed
from llamaswap_py.supervisor.memory_budgets import Budgets
from llamaswap_py.supervisor.prepare import LoadWay
from llamaswap_py.supervisor.ways import wanted_for, weighed
from llamaswap_py.units import GIB
from tests.estimate.shapes import HEADERS
from tests.unit.supervisors import configured, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.supervisor.prepare import Prepared

pytestmark = pytest.mark.anyio
WANT_64K = ", fit: {context: {want: 64k}}"


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Models are known by their names, and nothing is read of the user's state."""
    monkeypatch.setattr(module, "open_headers", lambda path: (HEADERS[path.rpartition("/")[2]],))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Machine:
    """Presets of 8B models, which take 9.4 GiB each with 32k of context, and their choices."""

    def __init__(self, folder: Path, gib: int, **keys: str) -> None:
        self.devices = (Device("host", gib * GIB, GIB, "psutil"),)
        cache = RecordFolder(folder / "cache", Estimate, version=1)
        self.estimator = Estimator(LearnedFacts(folder / "learned"), cache, repackable=("Q4_K",))
        entries = ", ".join(f"{name}: {{model: dense-8b{more}}}" for name, more in keys.items())
        models = configured(f"models: {{{entries}}}").models
        self.prepared = {name: _with_words(prepared(one)) for name, one in models.items()}
        self.used: set[str] = set(keys)
        self.budgets = Budgets(self.prepared, self.devices, used=lambda: self.used)
        fitter = Fitter(self.estimator)
        self.chooser = Chooser(
            self.prepared, self.budgets, fitter, 0, self._estimated, lambda *_: None
        )

    async def _estimated(self, preset: str, choice: Choice) -> Choice:
        wanted = wanted_for(self.prepared[preset], choice, self.devices, 0)
        assert wanted is not None
        return weighed(self.prepared[preset], choice, await self.estimator.estimate(wanted))

    async def choose(self, preset: str) -> list[Choice]:
        """Return the ways to load a preset, which others count with from then on."""
        one = self.prepared[preset]
        found = [each for way in one.ways for each in await self.chooser.choose(preset, one, way)]
        self.budgets.record(preset, found)
        return found


def _with_words(one: Prepared) -> Prepared:
    """Return a preset with the command lines of its variants."""
    ways = {}
    for preset in variant_presets(one.preset):
        words = [word for name, value in preset.args.items() for word in (f"--{name}", str(value))]
        said = frozenset({*preset.args, "cache-ram"})
        ways[preset.variant] = LoadWay(preset, ("--cache-ram", "1024", *words), (), said=said)
    return replace(one, ways=ways)


def contexts(choices: list[Choice]) -> list[tuple[int, bool]]:
    """Return the context of each choice, and whether it is one beside others; 0: the file's."""
    words = [one.words for one in choices]
    sizes = [int(one[one.index("--ctx-size") + 1]) if "--ctx-size" in one else 0 for one in words]
    return [(size, one.beside) for size, one in zip(sizes, choices, strict=True)]


async def test_two_models_of_8b_run_beside_each_other_in_24_gib(tmp_path: Path) -> None:
    """At 32k both have place as they are. At 64k the second one gets what the first one leaves."""
    usual = Machine(tmp_path, 24, a="", b="")
    assert contexts(await usual.choose("a")) == [(32768, False)]
    assert contexts(await usual.choose("b")) == [(32768, False)]
    long = Machine(tmp_path, 24, a=WANT_64K, b=WANT_64K)
    assert contexts(await long.choose("a")) == [(65536, False)]
    full, lower = await long.choose("b")
    assert contexts([full, lower]) == [(65536, False), (32768, True)]
    assert lower.chosen == "32,768 of 131,072 context: chosen to fit beside a"
    sizes = [(one.footprint or {})[PoolId("host")] / GIB for one in (full, lower)]
    assert sizes[0] + sizes[1] <= 23 < 2 * sizes[0]
    assert long.chooser.in_other_company(()) == ["a"], "it was chosen before b was known"
    assert contexts(await long.choose("a")) == [(65536, False), (32768, True)]
    assert long.chooser.in_other_company(()) == []


async def test_the_context_is_never_lowered_below_16k(tmp_path: Path) -> None:
    for gib, expected in ((18, [(32768, False), (16384, True)]), (17, [(32768, False)])):
        machine = Machine(tmp_path, gib, a="", b="")
        await machine.choose("a")
        assert contexts(await machine.choose("b")) == expected, gib


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", [(32768, False), (16384, True)]),
        (", fit: {variants: off}", [(32768, False)]),
        (", fit: {context: {least: 24k, want: 32k}}", [(32768, False)]),
        (", args: {ctx-size: 32768}", [(0, False)]),
        (", variants: [{name: x}, {name: y}]", [(32768, False), (32768, False)]),
        (", prefer: first", [(32768, False), (16384, True)]),
    ],
)
async def test_what_the_file_says_stands(
    tmp_path: Path, keys: str, expected: list[tuple[int, bool]]
) -> None:
    machine = Machine(tmp_path, 18, a="", b=keys)
    await machine.choose("a")
    assert contexts(await machine.choose("b")) == expected


async def test_only_models_that_are_in_use_and_may_be_loaded_too_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 18, a="", b="")
    machine.used = set()
    await machine.choose("a")
    assert contexts(await machine.choose("b")) == [(32768, False)], "a was not asked for"
    machine.used = {"b"}
    assert contexts(await machine.choose("b")) == [(32768, False)], "it is the only one"
    machine.used = {"a"}
    assert machine.chooser.in_other_company({"b"}) == [], "what is loaded stays as it is"
    assert machine.chooser.in_other_company(()) == ["b"]
    assert contexts(await machine.choose("b")) == [(32768, False), (16384, True)]
    one = machine.prepared["b"]
    for name in ("a", "b"):
        plan = replace(machine.prepared[name].plan, groups=("alone",))
        machine.prepared[name] = replace(machine.prepared[name], plan=plan)
    assert contexts(await machine.choose("b")) == [(32768, False)], "of a group one is loaded"
    machine.prepared["b"] = one


async def test_one_that_takes_more_or_less_is_a_reason_to_choose_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 24, a=WANT_64K, b=WANT_64K)
    (full,) = await machine.choose("a")
    await machine.choose("b")
    size = (full.footprint or {})[PoolId("host")]
    nearly = replace(full, footprint={PoolId("host"): round(size * 0.99)})
    machine.budgets.record("a", [nearly])
    assert "b" not in machine.chooser.in_other_company(())
    machine.budgets.record("a", [replace(full, footprint={PoolId("host"): 3 * size // 4})])
    assert "b" in machine.chooser.in_other_company(())
    assert contexts(await machine.choose("b")) == [(65536, False), (49152, True)]
    machine.budgets.record("a", [replace(full, footprint={PoolId("host"): size // 4})])
    assert contexts(await machine.choose("b")) == [(65536, False)], "it fits as it is"


async def test_one_that_takes_a_little_more_may_leave_too_little(tmp_path: Path) -> None:
    """It was measured, and takes three hundredths more than its estimate."""
    machine = Machine(tmp_path, 24, a=WANT_64K, b=WANT_64K)
    (full,) = await machine.choose("a")
    _, lower = await machine.choose("b")
    host = PoolId("host")
    spare = 23 * GIB - sum((one.footprint or {})[host] for one in (full, lower))
    size = (full.footprint or {})[host] + spare
    machine.budgets.record("a", [replace(full, footprint={host: size})])
    assert "b" not in machine.chooser.in_other_company(()), "there is no byte too few"
    assert size + 1 < 1.1 * (full.footprint or {})[host], "it is not clearly more"
    machine.budgets.record("a", [replace(full, footprint={host: size + 1})])
    assert "b" in machine.chooser.in_other_company(())
    assert contexts(await machine.choose("b")) == [(65536, False), (24576, True)]
    assert "b" not in machine.chooser.in_other_company(())


async def test_a_way_that_runs_out_of_memory_beside_others_is_not_tried_again(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, 24, a=WANT_64K, b=WANT_64K)
    await machine.choose("a")
    for contexts_left in ([32768], [24576], [16384], []):
        full, *lower = await machine.choose("b")
        assert [size for size, _ in contexts(lower)] == contexts_left
        assert full.leaner, "the way alone has not failed"
        if lower:
            assert lower[0].leaner
            machine.chooser.reduce("b", lower[0])
    again = Machine(tmp_path, 24, a=WANT_64K, b=WANT_64K)
    await again.choose("a")
    assert contexts(await again.choose("b")) == [(65536, False)], "nor after a restart"


CARDS = (
    Device("CUDA0", 24 * GIB, GIB, "nvml"),
    Device("CUDA1", 12 * GIB, GIB, "nvml"),
    Device("host", 64 * GIB, GIB, "psutil"),
)


def on(card: str, gib: float) -> dict[str, int]:
    return {card: round(gib * GIB), "host": GIB}


def test_others_take_the_place_that_leaves_the_most() -> None:
    room = {"CUDA0": 23 * GIB, "CUDA1": 11 * GIB, "host": 63 * GIB}
    needs = [on("CUDA0", 7), on("CUDA1", 7)]
    others = {
        "small": [on("CUDA1", 9), on("CUDA0", 9)],
        "large": [on("CUDA0", 15)],
        "huge": [on("CUDA0", 23)],
    }
    found = beside(others, needs, room, CARDS)
    assert found.names == ("small",), "with large and small on the cards nothing of 7 GiB has place"
    assert found.left == {"CUDA0": 14 * GIB, "CUDA1": 11 * GIB, "host": 62 * GIB}
    assert beside({}, needs, room, CARDS).left == room
    assert beside(others, [], room, CARDS).names == ()


def test_memory_that_devices_share_counts_once() -> None:
    shared = (
        Device("Vulkan0", 16 * GIB, 0, "engine", within="host"),
        Device("host", 16 * GIB, 0, "psutil"),
    )
    room = {"Vulkan0": 16 * GIB, "host": 16 * GIB}
    others = {"a": [{"Vulkan0": 9 * GIB, "host": GIB}]}
    assert beside(others, [{"Vulkan0": 5 * GIB, "host": GIB}], room, shared).names == ("a",)
    assert beside(others, [{"Vulkan0": 6 * GIB, "host": GIB}], room, shared).names == ()


def test_names_are_listed_as_people_say_them() -> None:
    assert [listed("abc"[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]
