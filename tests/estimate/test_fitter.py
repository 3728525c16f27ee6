"""The search for how a model fits: twelve shapes on seven machines; what dry runs change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from llamaswap_py.estimate import Estimate, Estimator, Part, Source, Wanted
from llamaswap_py.estimate import estimator as module
from llamaswap_py.estimate.fitter import FitStep, Fitted, Fitter, FitWish
from llamaswap_py.estimate.fitting import fit_steps
from llamaswap_py.estimate.types import DoesNotRunError
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import GIB, HOST, MIB
from tests.estimate.shapes import HEADERS, SHAPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.anyio

MACHINES: dict[str, dict[str, int]] = {
    "host-16": {HOST: 16 * GIB},
    "host-4": {HOST: 4 * GIB},
    "card-2": {"CUDA0": 2 * GIB, HOST: 16 * GIB},
    "card-6": {"CUDA0": 6 * GIB, HOST: 16 * GIB},
    "card-8": {"CUDA0": 8 * GIB, HOST: 32 * GIB},
    "card-24": {"CUDA0": 24 * GIB, HOST: 64 * GIB},
    "cards-24-12": {"CUDA0": 24 * GIB, "CUDA1": 12 * GIB, HOST: 64 * GIB},
}
WISHES = {"speed": FitWish(), "context": FitWish(favor="context")}


@pytest.fixture
def estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Estimator:
    """One that knows the shapes by their names, and has no llama-fit-params."""
    monkeypatch.setattr(module, "open_headers", lambda name: (HEADERS[name],))
    cache = RecordFolder(tmp_path / "cache", Estimate, version=1)
    return Estimator(LearnedFacts(tmp_path / "learned"), cache, repackable=("Q4_K",))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, shape in SHAPES.items():
        with (tmp_path / f"{name}.mmproj").open("wb") as file:
            file.truncate(shape.projector)
    return tmp_path


def wanted_for(name: str, room: Mapping[str, int], files: Path, *args: str) -> Wanted:
    shape = SHAPES[name]
    words = ("--cache-ram", "1024", *shape.args, *args)
    if shape.projector:
        words += ("--mmproj", str(files / f"{name}.mmproj"))
    gpus = tuple(device for device in room if device != HOST)
    return Wanted(name, name, words, (), gpus)


def fits(footprint: Mapping[str, int], room: Mapping[str, int]) -> bool:
    return all(size <= room.get(device, 0) for device, size in footprint.items())


class Judged:
    """All steps of one shape on one placement, each worked out once."""

    def __init__(self, estimator: Estimator, wanted: Wanted, wish: FitWish) -> None:
        self._wanted = wanted
        self._reckon = estimator.reckon
        self._opened = module._open(wanted.model, read_settings(wanted.args))
        header = self._opened.model[0]
        self.steps = fit_steps(header, read_settings(wanted.args), (), wanted.gpus, wish)
        self._known: dict[tuple[str, ...], dict[str, int]] = {}

    def footprint(self, *words: str) -> dict[str, int]:
        if words not in self._known:
            args = (*self._wanted.args, *words)
            self._known[words] = self._reckon(self._opened, args, self._wanted.gpus).footprint
        return self._known[words]

    def first(self, room: Mapping[str, int]) -> FitStep | None:
        """Return the first step that fits, by trying one after the other."""
        return next((one for one in self.steps if fits(self.footprint(*one.words), room)), None)


async def fit(
    estimator: Estimator, wanted: Wanted, room: Mapping[str, int], wish: FitWish
) -> Fitted:
    return await Fitter(estimator).fit(wanted, room, wish, said=())


@pytest.mark.parametrize(
    ("name", "favor"),
    [
        *((name, "speed") for name in SHAPES),
        *((name, "context") for name in ("dense-8b", "moe-small", "sliding-window")),
    ],
)
async def test_the_first_step_that_fits_is_found(
    name: str, favor: str, estimator: Estimator, files: Path
) -> None:
    """The search by halves finds what trying every step finds."""
    wish = WISHES[favor]
    judged: dict[tuple[str, ...], Judged] = {}
    for machine, room in MACHINES.items():
        wanted = wanted_for(name, room, files)
        if len(wanted.gpus) > 1:
            continue
        known = judged.setdefault(wanted.gpus, Judged(estimator, wanted, wish))
        found = await fit(estimator, wanted, room, wish)
        expected = known.first(room)
        assert found.step == expected, machine
        assert found.fits is (expected is not None), machine
        if found.step is not None:
            assert found.estimate.footprint == known.footprint(*found.step.words), machine
            assert fits(found.estimate.footprint, room), machine


async def test_the_only_step_is_taken_too(estimator: Estimator, files: Path) -> None:
    """A wish for just one context, where nothing else is open."""
    wish = FitWish(least=4096, want=4096)
    room = {HOST: 16 * GIB}
    wanted = replace(wanted_for("dense-8b", room, files), args=("--cache-ram", "0"))
    found = await fit(estimator, wanted, room, wish)
    assert found.step is not None
    assert (found.step.context, found.step.words) == (4096, ("--ctx-size", "4096"))
    assert fits(found.estimate.footprint, room)


@pytest.mark.parametrize("name", SHAPES)
async def test_words_say_what_the_step_says(name: str, estimator: Estimator, files: Path) -> None:
    room = MACHINES["card-8"]
    wanted = wanted_for(name, room, files)
    header = HEADERS[name]
    steps = fit_steps(header, read_settings(wanted.args), (), wanted.gpus, FitWish())
    for step in steps:
        said = read_settings((*wanted.args, *step.words))
        assert said.context == step.context
        assert said.slots == step.slots
        assert min(said.gpu_layers, step.layers) == step.layers_on_devices
        assert "--fit" not in step.words, "lswap's own words have it"
        assert step.context <= step.trained
        if step.layers_on_devices:
            assert said.cpu_expert_layers == step.experts_on_host
        assert said.host_alone is (step.layers_on_devices == 0)


@pytest.mark.parametrize("name", SHAPES)
async def test_more_room_never_gives_a_worse_step(
    name: str, estimator: Estimator, files: Path
) -> None:
    for gpus in ((), ("CUDA0",), ("CUDA0", "CUDA1")):
        last = 10**9
        for gib in (1, 3, 8, 21):
            room = dict.fromkeys((*gpus, HOST), gib * GIB)
            if len(gpus) > 1:
                room["CUDA1"] //= 2
            found = await fit(estimator, wanted_for(name, room, files), room, FitWish())
            rank = 10**9 if found.step is None else found.step.rank
            assert rank <= last, (gpus, gib)
            last = rank


@pytest.mark.parametrize("name", ["dense-8b", "dense-32b", "moe-large", "sliding-window"])
async def test_no_other_split_over_two_cards_would_do_better(
    name: str, estimator: Estimator, files: Path
) -> None:
    """Every step before the found one is too large with every way to divide its layers."""
    for first, second in ((4, 2), (12, 6), (6, 12), (14, 9)):
        room = {"CUDA0": first * GIB, "CUDA1": second * GIB, HOST: 64 * GIB}
        wanted = wanted_for(name, room, files)
        found = await fit(estimator, wanted, room, FitWish())
        assert found.step is not None
        assert fits(found.estimate.footprint, room)
        judged = Judged(estimator, wanted, FitWish())
        before = [one for one in judged.steps[: found.step.rank] if one.layers_on_devices]
        for step in before[-4:]:
            count = step.layers_on_devices
            splits = [f"{left},{count - left}" for left in range(count + 1)]
            assert not any(
                fits(judged.footprint(*step.words, "--tensor-split", split), room)
                for split in splits
            ), (room, step)


# What dry runs and measurements change


class Engine(Estimator):
    """One whose dry runs say what a test wants: the formulas and more, or that it aborts."""

    more: dict[str, int]
    longest: int
    refuses: tuple[str, str]
    runs: list[tuple[int, int]]

    async def dry_run(self, wanted: Wanted) -> Estimate:
        said = read_settings(wanted.args)
        self.runs.append((said.context, said.gpu_layers))
        if said.context > self.longest and not said.host_alone:
            tensor, device = self.refuses
            raise DoesNotRunError("it aborted", tensor=tensor, device=device)
        found = await self.analytic(wanted)
        parts = [Part(device, "more", size) for device, size in self.more.items()]
        return Estimate(Source.DRY_RUN, (*found.parts, *parts))


@pytest.fixture
def engine(estimator: Estimator, tmp_path: Path) -> Engine:
    cache = RecordFolder(tmp_path / "dry-runs", Estimate, version=1)
    engine = Engine(LearnedFacts(tmp_path / "learned"), cache, repackable=("Q4_K",))
    engine.more, engine.longest, engine.refuses, engine.runs = {}, 10**9, ("", ""), []
    return engine


def dry(name: str, room: Mapping[str, int], files: Path, *args: str) -> Wanted:
    return replace(wanted_for(name, room, files, *args), fit_params=files / "llama-fit-params")


CARD_6 = MACHINES["card-6"]


async def test_one_dry_run_proves_what_the_formulas_found(engine: Engine, files: Path) -> None:
    wanted = dry("dense-8b", CARD_6, files)
    found = await fit(engine, wanted, CARD_6, FitWish())
    assert found.step is not None
    assert found.estimate.source is Source.DRY_RUN
    assert engine.runs == [(found.step.context, found.step.layers_on_devices)]
    again = await fit(engine, wanted, CARD_6, FitWish())
    assert again.step == found.step
    assert len(engine.runs) == 1  # the second fit used the kept result


async def test_what_a_dry_run_finds_more_makes_the_next_step_smaller(
    engine: Engine, estimator: Estimator, files: Path
) -> None:
    formula = await fit(estimator, wanted_for("dense-8b", CARD_6, files), CARD_6, FitWish())
    engine.more = {"CUDA0": 700 * MIB}
    engine.runs.clear()
    found = await fit(engine, dry("dense-8b", CARD_6, files), CARD_6, FitWish())
    assert formula.step is not None
    assert found.step is not None
    assert found.step.rank > formula.step.rank
    assert found.estimate.footprint["CUDA0"] <= CARD_6["CUDA0"]
    assert len(engine.runs) == 2  # the first said by how much, the second fits
    assert [one.fits for one in found.tried if one.source == "dry-run"] == [False, True]


async def test_what_a_dry_run_finds_less_is_used(
    engine: Engine, estimator: Estimator, files: Path
) -> None:
    """The formulas count 1 GiB too much: the step they find is not the first that fits."""
    formula = await fit(estimator, wanted_for("dense-8b", CARD_6, files), CARD_6, FitWish())
    engine.more = {"CUDA0": -1 * GIB}
    engine.runs.clear()
    found = await fit(engine, dry("dense-8b", CARD_6, files), CARD_6, FitWish())
    assert formula.step is not None
    assert found.step is not None
    assert found.step.rank < formula.step.rank
    assert found.estimate.footprint["CUDA0"] <= CARD_6["CUDA0"]


async def test_a_model_that_only_formulas_refuse_is_still_tried(
    engine: Engine, estimator: Estimator, files: Path
) -> None:
    room = {HOST: 3 * GIB}
    refused = await fit(estimator, wanted_for("dense-8b", room, files), room, FitWish())
    assert not refused.fits
    engine.more = {HOST: -6 * GIB}
    found = await fit(engine, dry("dense-8b", room, files), room, FitWish())
    assert found.fits


async def test_an_abort_is_a_step_that_does_not_fit(engine: Engine, files: Path) -> None:
    room = MACHINES["card-24"]
    engine.longest = 16384
    found = await fit(engine, dry("dense-8b", room, files), room, FitWish())
    assert found.step is not None
    assert found.step.context == 16384
    notes = {one.step.context: one.note for one in found.tried if one.source == "dry-run"}
    assert notes == {32768: "it aborted", 24576: "it aborted", 16384: ""}
    assert [context for context, _ in engine.runs] == [32768, 24576, 16384]


async def test_the_size_that_a_device_refused_is_remembered(engine: Engine, files: Path) -> None:
    """A K tensor of 24k tokens is too large; the next search begins below that."""
    room = MACHINES["card-24"]
    engine.longest, engine.refuses = 16384, ("cache_k_l0", "CUDA0")
    first = await fit(engine, dry("dense-8b", room, files), room, FitWish())
    assert first.step is not None
    assert first.step.context == 16384
    # After a refusal half the size is tried, and what lies between only then.
    assert [context for context, _ in engine.runs] == [32768, 16384, 24576]
    engine.runs.clear()
    kept = Engine(repackable=(), cache=RecordFolder(files / "dry-runs", Estimate, version=1))
    kept.more, kept.longest, kept.refuses, kept.runs = {}, 16384, engine.refuses, engine.runs
    second = await fit(kept, dry("dense-8b", room, files, "--no-mmap"), room, FitWish())
    assert second.step is not None
    assert second.step.context == 16384
    assert [context for context, _ in kept.runs] == [16384]
    notes = {one.step.context: one.note for one in second.tried}
    assert notes[32768] == "a cache tensor of 64 MiB is too large for CUDA0"
    assert notes[16384] == ""
    longer = ("--cache-type-k", "q8_0", "--cache-type-v", "q8_0")
    third = await fit(kept, dry("dense-8b", room, files, *longer), room, FitWish())
    assert [context for context, _ in kept.runs][1:] == [32768, 16384, 24576]  # half as large
    assert third.step is not None


async def test_a_limit_far_below_the_wanted_context_is_found(engine: Engine, files: Path) -> None:
    room = MACHINES["card-24"]
    engine.longest, engine.refuses = 8192, ("cache_v_l3", "CUDA0")
    found = await fit(engine, dry("dense-8b", room, files), room, FitWish(want=131072))
    assert found.step is not None
    assert found.step.context == 8192
    assert found.estimate.source is Source.DRY_RUN
    assert [context // 1024 for context, _ in engine.runs][-2:] == [8, 12]


async def test_another_refused_tensor_says_nothing_of_the_cache(
    engine: Engine, files: Path
) -> None:
    room = MACHINES["card-24"]
    engine.longest, engine.refuses = 24576, ("cache_s_l0", "CUDA0")
    wanted = dry("dense-8b", room, files)
    found = await fit(engine, wanted, room, FitWish())
    assert found.step is not None
    assert found.step.context == 24576
    assert engine.limits.refused(wanted) == {}


async def test_after_six_dry_runs_each_further_one_skips_more_steps_until_one_is_proven(
    engine: Engine, files: Path
) -> None:
    room = MACHINES["card-24"]
    engine.longest = 0
    found = await fit(engine, dry("dense-8b", room, files), room, FitWish())
    assert found.step is not None
    assert found.step.layers_on_devices == 0, "only the host runs it"
    assert found.estimate.source is Source.DRY_RUN
    assert found.step.context == 32768, "what was skipped last is tried by halves"
    layers = [count for _, count in engine.runs]
    assert layers == [33, 33, 33, 33, 33, 32, 31, 30, 29, 26, 22, 13, 0, 5, 1, 0, 0, 0]


async def test_what_no_dry_run_admits_is_not_admitted_by_the_formulas(
    engine: Engine, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def aborts(wanted: Wanted) -> Estimate:
        engine.runs.append((read_settings(wanted.args).context, 0))
        raise DoesNotRunError("it aborted")

    monkeypatch.setattr(engine, "dry_run", aborts)
    room = MACHINES["card-24"]
    found = await fit(engine, dry("dense-8b", room, files), room, FitWish())
    assert found.step is None
    assert not found.fits
    assert len(engine.runs) < 20
    before = len(engine.runs)
    again = await fit(engine, dry("dense-8b", room, files), room, FitWish())
    assert not again.fits
    assert len(engine.runs) == before, "an abort is kept like any other result"


async def test_an_abort_is_not_repeated_after_a_restart(
    engine: Engine, files: Path, tmp_path: Path
) -> None:
    room = MACHINES["card-24"]
    engine.longest = 16384
    await fit(engine, dry("dense-8b", room, files), room, FitWish())
    cache = RecordFolder(tmp_path / "dry-runs", Estimate, version=1)
    later = Engine(LearnedFacts(tmp_path / "learned"), cache, repackable=("Q4_K",))
    later.more, later.longest, later.refuses, later.runs = {}, 16384, ("", ""), []
    found = await fit(later, dry("dense-8b", room, files), room, FitWish())
    assert found.step is not None
    assert found.step.context == 16384
    assert later.runs == []
    notes = {one.step.context: one.note for one in found.tried if one.source == "dry-run"}
    assert notes == {32768: "it aborted", 24576: "it aborted", 16384: ""}


async def test_an_abort_with_an_rpc_server_is_not_kept(
    engine: Engine, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have gone in the middle of it."""
    monkeypatch.setattr(module, "connect", lambda _: None)
    room = {"RPC0": 24 * GIB, HOST: 64 * GIB}
    wanted = dry("dense-8b", room, files, "--rpc", "127.0.0.1:50052", "--ctx-size", "32768")
    engine.longest = 0
    for _ in range(2):
        with pytest.raises(DoesNotRunError):
            await engine.prove(wanted)
    assert len(engine.runs) == 2
    engine.longest = 32768
    assert (await engine.prove(wanted)).source is Source.DRY_RUN


async def test_only_context_and_prompt_cache_are_lowered(engine: Engine, files: Path) -> None:
    """Of a step with all layers on the card those below 16k, and those with fewer layers, are not
    lower ones."""
    room = MACHINES["card-24"]
    wanted = dry("dense-8b", room, files)
    full = await fit(engine, wanted, room, FitWish())
    assert full.step is not None
    assert full.step.context == 32768

    async def lower(gib: float, after: int = -1) -> FitStep | None:
        less = {"CUDA0": round(gib * GIB), HOST: 16 * GIB}
        found = await Fitter(engine).fit(
            wanted, less, FitWish(), said=(), after=after, lower=full.step
        )
        return found.step

    taken = full.estimate.footprint["CUDA0"] / GIB
    step = await lower(taken - 0.5)
    assert step is not None
    assert (step.context, step.layers_on_devices) == (24576, 33)
    step = await lower(taken - 1.5, after=step.rank)
    assert step is not None
    assert (step.context, step.layers_on_devices) == (16384, 33)
    assert await lower(taken - 4) is None
    assert await lower(taken, after=step.rank + 1) is None
    least = await Fitter(engine).lightest(wanted, FitWish(), said=(), lower=full.step)
    assert least is not None
    assert taken - 2.1 < least["CUDA0"] / GIB < taken - 1.9, "16k of 128 KiB a token less"
    none = await Fitter(engine).lightest(wanted, FitWish(), said=("ctx-size",), lower=step)
    assert none is None


async def test_what_was_measured_with_the_same_words_wins(engine: Engine, files: Path) -> None:
    wanted = dry("dense-8b", CARD_6, files)
    first = await fit(engine, wanted, CARD_6, FitWish())
    assert first.step is not None
    ran = replace(wanted, args=(*wanted.args, *first.step.words))
    use = {"CUDA0": CARD_6["CUDA0"] + 200 * MIB, HOST: 2 * GIB}
    await engine.learn_ready(ran, first.estimate, use, 1.0)
    second = await fit(engine, wanted, CARD_6, FitWish())
    assert second.step is not None
    assert second.step.rank > first.step.rank
    assert {one.step.rank: one.source for one in second.tried}[first.step.rank] == "measured"


@pytest.mark.parametrize("has_dry_runs", [True, False])
async def test_an_excess_of_a_similar_command_line_is_added(
    engine: Engine, estimator: Estimator, files: Path, has_dry_runs: bool
) -> None:
    """With 8k it took 300 MiB more than worked out, so that much is counted with 32k as well."""
    engine = engine if has_dry_runs else cast("Engine", estimator)
    room = MACHINES["card-24"]
    wanted = dry("dense-8b", room, files) if has_dry_runs else wanted_for("dense-8b", room, files)
    words = ("--ctx-size", "8192", "--n-gpu-layers", "33")
    ran = replace(wanted, args=(*wanted.args, *words))
    worked_out = await engine.work_out(ran)
    use = {device: size + 300 * MIB for device, size in worked_out.footprint.items()}
    await engine.learn_ready(ran, None, use, 1.0)
    found = await fit(engine, wanted, room, FitWish())
    assert found.step is not None
    assert found.step.context == 32768
    dry_run = await engine.work_out(replace(wanted, args=(*wanted.args, *found.step.words)))
    expected = {device: size + 300 * MIB for device, size in dry_run.footprint.items()}
    assert found.estimate.footprint == expected


async def test_after_a_step_that_ran_out_of_memory_only_later_ones_are_tried(
    engine: Engine, files: Path
) -> None:
    wanted = dry("dense-8b", CARD_6, files)
    first = await fit(engine, wanted, CARD_6, FitWish())
    assert first.step is not None
    second = await Fitter(engine).fit(wanted, CARD_6, FitWish(), said=(), after=first.step.rank)
    assert second.step is not None
    assert second.step.rank > first.step.rank


async def test_after_the_last_step_nothing_fits(engine: Engine, files: Path) -> None:
    room = {HOST: 64 * GIB}
    wanted = dry("dense-8b", room, files)
    found = await Fitter(engine).fit(wanted, room, FitWish(), said=(), after=10**6)
    assert found.step is None
    assert not found.fits
    assert found.closest is not None
    assert found.closest.context == 4096


# What stands, and what is said when nothing fits


async def test_nothing_is_chosen_where_the_file_says_all(engine: Engine, files: Path) -> None:
    args = ("--ctx-size", "4096", "--n-gpu-layers", "33")
    said = ("ctx-size", "n-gpu-layers", "cache-ram")
    wanted = wanted_for("dense-8b", CARD_6, files, *args)
    found = await Fitter(engine).fit(wanted, CARD_6, FitWish(), said=said)
    assert found.step is None
    assert found.fits
    assert found.estimate == await engine.estimate(wanted)


async def test_a_file_that_formulas_do_not_know_is_estimated_as_it_is(
    engine: Engine, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(HEADERS["dense-8b"], metadata={"general.architecture": "newer"})
    monkeypatch.setattr(module, "open_headers", lambda _: (unknown,))

    async def known_to_the_engine(_: Wanted) -> Estimate:
        return Estimate(Source.DRY_RUN, (Part(HOST, "weights", GIB),))

    monkeypatch.setattr(engine, "dry_run", known_to_the_engine)
    found = await fit(engine, dry("dense-8b", CARD_6, files), CARD_6, FitWish())
    assert found.step is None
    assert found.fits
    assert found.estimate.footprint == {HOST: GIB}


async def test_declared_memory_is_not_fitted(engine: Engine, files: Path) -> None:
    wanted = replace(wanted_for("dense-8b", CARD_6, files), declared={"CUDA0": 99 * GIB})
    found = await fit(engine, wanted, CARD_6, FitWish())
    assert found.step is None
    assert not found.fits
    assert found.estimate.source is Source.DECLARED


async def test_a_model_that_cannot_fit_says_how_close_it_is_and_which_one_would(
    estimator: Estimator, files: Path
) -> None:
    room = {HOST: 30 * GIB}
    wanted = wanted_for("dense-70b", room, files)
    found = await fit(estimator, wanted, room, FitWish())
    assert found.step is None
    assert not found.fits
    assert found.closest is not None
    assert found.closest.context == 4096
    assert found.estimate.footprint[HOST] == min(one.footprint[HOST] for one in found.tried)
    assert found.smaller is not None
    assert found.smaller.quantisation == "Q2_K"
    assert 25 * GIB < found.smaller.size < 27 * GIB


async def test_a_given_context_that_is_too_long_names_a_smaller_quantisation(
    estimator: Estimator, files: Path
) -> None:
    room = {HOST: 8 * GIB}
    wanted = wanted_for("dense-8b", room, files, "--ctx-size", "8192", "--no-mmap")
    found = await Fitter(estimator).fit(
        wanted, {HOST: 5 * GIB}, FitWish(), said=("ctx-size", "cache-ram")
    )
    assert found.step is None
    assert not found.fits
    assert found.smaller is not None
    assert found.smaller.step.context == 8192
