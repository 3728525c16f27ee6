"""When it is chosen again what a preset runs as: a choice stays until it does not fit any more."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.devices import Device
from llamaswap_py.estimate import Estimate, Part, Source
from llamaswap_py.scheduler.types import Choice, Failure, PoolId, PresetId
from llamaswap_py.supervisor import chooser
from llamaswap_py.supervisor.chosen_ways import ChosenWay
from llamaswap_py.supervisor.estimation import Estimation, ReadyChild
from llamaswap_py.units import GIB
from tests.unit.supervisors import configured, prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llamaswap_py.estimate import Estimator, Wanted
    from llamaswap_py.supervisor.prepare import Prepared
    from llamaswap_py.supervisor.rooms import DeviceRoom

pytestmark = pytest.mark.anyio
HOST = (Device("host", 16 * GIB, GIB, "psutil"),)
NO_MEMORY = Failure("out_of_memory", "not enough memory", 1)
TWO = "models: {open: {model: /open.gguf}, kept: {model: /kept.gguf, pin: true}}"


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Measured:
    """An estimator: what a command line takes, by the last of its words."""

    def __init__(self) -> None:
        self.takes: dict[str, int] = {}

    async def estimate(self, wanted: Wanted) -> Estimate:
        size = self.takes.get(wanted.args[-1] if wanted.args else "", GIB)
        return Estimate(Source.MEASURED, (Part("host", "weights", size),))

    async def learn_ready(self, *_: object) -> str:
        return ""

    async def learned_load(self, _: object) -> float:
        return 1.0

    async def in_place(self, _: object) -> None:
        return None


class Bench:
    """An Estimation whose choices are scripted, and what it told."""

    def __init__(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepared = {
            name: _estimating(prepared(preset)) for name, preset in configured(text).models.items()
        }
        self.rooms: list[tuple[str, list[DeviceRoom]]] = []
        self.after: list[int] = []
        self.script = ["32768", "8192", "4096"]
        self.told: asyncio.Queue[tuple[str, tuple[Choice, ...]]] = asyncio.Queue()
        self.measured = Measured()
        self.held: dict[str, int] = {}
        self.loaded: list[ReadyChild] = []
        monkeypatch.setattr(chooser, "choose_ways", self._choose)
        self.estimation = Estimation(
            self.prepared,
            HOST,
            0,
            lambda preset, choices, *_: self.told.put_nowait((preset, choices)),
            lambda: self.loaded,
            cast("Estimator", self.measured),
            strangers=lambda: self.held,
        )

    async def _choose(
        self, one: Prepared, variant: str, *rest: Any, after: int = -1
    ) -> Sequence[ChosenWay]:
        self.rooms.append((one.preset.id, rest[-1]))
        self.after.append(after)
        words = ("--ctx-size", self.script.pop(0))
        choice = Choice({PoolId("host"): 4 * GIB}, (), variant, "dry-run", words=words)
        return [ChosenWay(choice, Estimate(Source.DRY_RUN, ()), (), after + 1)]

    async def next(self) -> tuple[str, list[str]]:
        """Return the next preset that was told, and the context of each of its choices."""
        async with asyncio.timeout(60):
            preset, choices = await self.told.get()
        return preset, [choice.words[-1] for choice in choices]

    def reduce(self, preset: str, context: str) -> None:
        self.estimation.reduce(preset, Choice(None, words=("--ctx-size", context)), NO_MEMORY)

    def is_ready(self, preset: str, context: str) -> ReadyChild:
        choice = Choice(None, words=("--ctx-size", context))
        return ReadyChild(PresetId(preset), choice, os.getpid(), 1.0)


def _estimating(one: Prepared) -> Prepared:
    choices = (Choice(None, source="unknown"),)
    return replace(one, plan=replace(one.plan, choices=choices, estimating=True))


def _with_args(one: Prepared, *args: str) -> Prepared:
    return replace(one, ways={"": replace(one.ways[""], args=args)})


async def run(bench: Bench, then: Callable[[Bench], Any]) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bench.estimation.run())
        await then(bench)
        running.cancel()


async def test_what_the_file_pins_comes_first_and_takes_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(TWO, monkeypatch)
    bench.held = {"host": 2 * GIB}

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("kept", ["32768"])
        assert await bench.next() == ("open", ["8192"])

    await run(bench, then)
    rooms = {name: [room.whole["host"] // GIB for room in each] for name, each in bench.rooms}
    assert rooms["kept"] == [13, 15, 15], "less the margin, and what other programs hold"
    assert rooms["open"] == [9, 11, 15], "less what is pinned; and then as if nothing were"


async def test_a_measurement_changes_no_choice_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("models: {open: {model: /open.gguf}}", monkeypatch)
    bench.measured.takes["32768"] = 5 * GIB

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        bench.held = {"host": 14 * GIB}  # it would be chosen for less now
        bench.estimation.record_ready(bench.is_ready("open", "32768"))
        async with asyncio.timeout(60):
            preset, (choice,) = await bench.told.get()
        assert (preset, choice.words) == ("open", ("--ctx-size", "32768"))
        assert choice.footprint == {"host": 5 * GIB}
        assert choice.source == "measured"

    await run(bench, then)


async def test_what_turns_out_too_large_is_chosen_anew_and_still_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench("models: {open: {model: /open.gguf}}", monkeypatch)
    bench.measured.takes["32768"] = 20 * GIB

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        bench.estimation.record_ready(bench.is_ready("open", "32768"))
        assert await bench.next() == ("open", ["8192", "32768"])

    await run(bench, then)


async def test_another_amount_of_memory_for_ten_minutes_is_a_reason_unless_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench("models: {open: {model: /open.gguf}}", monkeypatch)

    def looked(*minutes: int) -> None:
        for minute in minutes:
            bench.estimation.choose_anew(60.0 * minute)

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        bench.held = {"host": GIB}  # less than a tenth
        looked(0, 11)
        bench.held = {"host": 8 * GIB}
        looked(20, 29)
        bench.held = {}  # it comes and goes
        looked(30)
        bench.held = {"host": 8 * GIB}
        looked(31, 40)
        bench.loaded = [bench.is_ready("open", "32768")]
        looked(45)
        assert len(bench.rooms) == 1
        bench.loaded = []
        looked(46)
        assert await bench.next() == ("open", ["8192"])

    await run(bench, then)


async def test_what_ran_out_of_memory_is_chosen_after_that_step_until_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench("models: {open: {model: /open.gguf}}", monkeypatch)

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        bench.reduce("open", "32768")
        assert await bench.next() == ("open", ["8192"])
        bench.estimation.record_ready(bench.is_ready("open", "8192"))
        assert await bench.next() == ("open", ["8192"])
        bench.prepared["open"] = _with_args(bench.prepared["open"], "--threads", "2")
        bench.estimation.redo(["open"])  # a reload
        assert await bench.next() == ("open", ["4096"])

    await run(bench, then)
    assert bench.after == [-1, 0, -1]


async def test_what_ran_out_of_memory_is_known_after_a_restart_for_as_much_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "models: {open: {model: /open.gguf}}"

    async def fails(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        bench.reduce("open", "32768")
        assert await bench.next() == ("open", ["8192"])

    async def starts(bench: Bench) -> None:
        await bench.next()

    first = Bench(text, monkeypatch)
    await run(first, fails)
    again = Bench(text, monkeypatch)
    await run(again, starts)
    assert again.after == [0], "nothing has changed"
    other = Bench(text.replace("open.gguf", "open.gguf, args: {threads: 2}"), monkeypatch)
    one = other.prepared["open"]
    other.prepared["open"] = _with_args(one, "--threads", "2")
    await run(other, starts)
    assert other.after == [-1], "other arguments"
    fuller = Bench(text, monkeypatch)
    fuller.held = {"host": 4 * GIB}
    await run(fuller, starts)
    assert fuller.after == [-1], "another budget"
    last = Bench(text, monkeypatch)
    await run(last, starts)
    assert last.after == [-1], "what may be tried upwards again is forgotten"


async def test_a_record_of_a_newer_lswap_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "models: {open: {model: /open.gguf}}"

    async def fails(bench: Bench) -> None:
        await bench.next()
        bench.reduce("open", "32768")
        await bench.next()

    async def starts(bench: Bench) -> None:
        await bench.next()

    await run(Bench(text, monkeypatch), fails)
    (record,) = (tmp_path / "state").rglob("step-down-*.json")
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "version": kept["version"] + 1}))
    older = Bench(text, monkeypatch)
    await run(older, starts)
    assert older.after == [-1]


async def test_what_was_chosen_for_a_file_that_changed_meanwhile_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reload comes while it is worked out what the preset of the older file runs as."""
    bench = Bench("models: {open: {model: /open.gguf}}", monkeypatch)
    began, reloaded = asyncio.Event(), asyncio.Event()
    choose = bench._choose

    async def slow(one: Prepared, *rest: Any, after: int = -1) -> Sequence[ChosenWay]:
        found = await choose(one, *rest, after=after)
        if not reloaded.is_set():
            began.set()
            await reloaded.wait()
        return found

    monkeypatch.setattr(chooser, "choose_ways", slow)

    async def then(bench: Bench) -> None:
        await began.wait()
        bench.estimation.redo(["open"])
        reloaded.set()
        assert await bench.next() == ("open", ["8192"])

    await run(bench, then)
    assert bench.told.empty()


async def test_the_last_step_is_not_loaded_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("models: {open: {model: /open.gguf}}", monkeypatch)
    choose = bench._choose

    async def only(one: Prepared, *rest: Any, after: int = -1) -> Sequence[ChosenWay]:
        (way,) = await choose(one, *rest, after=after)
        choice = replace(way.choice, leaner=after < 0, chosen="all")
        return [replace(way, choice=choice, rank=0 if after < 0 else None)]

    monkeypatch.setattr(chooser, "choose_ways", only)

    async def told(bench: Bench) -> Choice:
        async with asyncio.timeout(60):
            _, (choice,) = await bench.told.get()
        return choice

    async def then(bench: Bench) -> None:
        assert (await told(bench)).leaner
        bench.reduce("open", "32768")
        last = await told(bench)
        assert not last.leaner, "or it would be reduced again and again"
        assert last.chosen == "all; a load ran out of memory, and there is nothing less"

    await run(bench, then)


async def test_a_reload_that_pins_one_makes_the_others_fit_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(TWO.replace(", pin: true", ""), monkeypatch)
    pinned = _estimating(prepared(configured(TWO).models["kept"]))

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        assert await bench.next() == ("kept", ["8192"])
        bench.prepared["kept"] = pinned
        bench.script = ["4096", "2048"]
        bench.estimation.redo(["kept"])
        assert await bench.next() == ("kept", ["4096"])
        assert await bench.next() == ("open", ["2048"])

    await run(bench, then)
    assert bench.rooms[-1][0] == "open"
    assert bench.rooms[-1][1][0].whole["host"] == 11 * GIB, "less the 4 GiB that are pinned now"


async def test_a_file_that_was_replaced_is_chosen_for_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "open.gguf"
    file.write_bytes(b"small")
    bench = Bench(f"models: {{open: {{model: {file}}}}}", monkeypatch)
    one = bench.prepared["open"]
    way = replace(one.ways[""], files=(str(file),))
    bench.prepared["open"] = replace(one, ways={"": way})

    async def then(bench: Bench) -> None:
        assert await bench.next() == ("open", ["32768"])
        bench.reduce("open", "32768")
        assert await bench.next() == ("open", ["8192"])
        bench.estimation.record_ready(bench.is_ready("open", "8192"))
        assert await bench.next() == ("open", ["8192"])
        file.write_bytes(b"another one")
        bench.estimation.record_ready(bench.is_ready("open", "8192"))
        assert await bench.next() == ("open", ["4096"])

    await run(bench, then)
    assert bench.after == [-1, 0, -1], "what ran out of memory was the older file"
