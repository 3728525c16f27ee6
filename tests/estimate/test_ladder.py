"""The ladder: declared, measured, dry run, formula; and what is kept between them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llamaswap_py.estimate import Estimate, Estimator, Part, Source, Wanted, surprise
from llamaswap_py.estimate import wanted as questions
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.estimate.wanted import SCHEMA
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import HOST, MIB

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TinyModel

pytestmark = pytest.mark.anyio

HELP = (
    "-c,    --ctx-size N                     size\n"
    "-np,   --parallel N                     slots\n"
    "--log-jsonl                             logs in JSON\n"
)
ROW = {"kind": "host", "name": "Host", "model": 100, "context": 20, "compute": 8}


class Bench:
    """A tiny model, a stand-in for llama-fit-params that counts its runs, and an estimator."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.fit_params = folder / "llama-fit-params"
        self.answer(ROW)
        self.learned = LearnedFacts(folder / "learned")
        self.cache = RecordFolder(folder / "cache", Estimate, version=1)

    @property
    def estimator(self) -> Estimator:
        """A new one each time: nothing is kept but on disk."""
        return Estimator(self.learned, self.cache, repackable=())

    @property
    def runs(self) -> int:
        file = self.folder / "runs"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def answer(self, *rows: dict[str, Any]) -> None:
        data = {"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": list(rows)}}
        self.write(f"cat <<'END'\n{json.dumps(data, separators=(',', ':'))}\nEND")

    def write(self, body: str) -> None:
        self.fit_params.write_text(
            f"#!/bin/sh\nif [ $1 = --help ]; then cat <<'END'\n{HELP}END\nexit; fi\n"
            f"echo x >> {self.folder}/runs\n{body}\n"
        )
        self.fit_params.chmod(0o755)

    def wanted(self, *args: str, **changes: Any) -> Wanted:
        plain = Wanted(
            preset="alpha",
            model=str(self.model),
            args=("--model", str(self.model), "--cache-ram", "64", *args),
            files=(str(self.model),),
            engine="b1-cpu",
            fit_params=self.fit_params,
            cache_ram=64 * MIB,
        )
        return replace(plain, **changes)


@pytest.fixture
def bench(tmp_path: Path, tiny_model: TinyModel) -> Bench:
    return Bench(tmp_path, tiny_model("ladder", "up and down"))


async def test_what_is_declared_overrules_all(bench: Bench) -> None:
    found = await bench.estimator.estimate(bench.wanted(declared={"CUDA0": 5 * MIB}))
    assert found.source is Source.DECLARED
    assert found.footprint == {"CUDA0": 5 * MIB, HOST: 64 * MIB}
    whole = await bench.estimator.estimate(bench.wanted(declared={HOST: 7 * MIB}))
    assert whole.footprint == {HOST: 7 * MIB}
    assert bench.runs == 0


async def test_a_dry_run_before_the_first_load(bench: Bench) -> None:
    found = await bench.estimator.estimate(bench.wanted("-c", "512", "-np", "1"))
    assert found.source is Source.DRY_RUN
    sizes = {part.what: part.size for part in found.parts}
    assert sizes["weights"] == 100 * MIB + MIB // 2
    assert sizes["context"] == 20 * MIB + MIB // 2
    assert sizes["prompt cache"] == 64 * MIB
    assert found.growth[HOST] >= 64 * MIB + 8 * MIB
    assert "100.5 MiB weights" in found.explain(HOST)


async def test_a_dry_run_is_kept_until_something_changes(bench: Bench) -> None:
    first = await bench.estimator.estimate(bench.wanted())
    assert await bench.estimator.estimate(bench.wanted()) == first
    named = bench.wanted("--alias", "beta", "--threads-http", "99")
    assert await bench.estimator.estimate(replace(named, preset="beta")) == first
    assert bench.runs == 1
    await bench.estimator.estimate(bench.wanted("-c", "1024"))
    await bench.estimator.estimate(bench.wanted(engine="b2-cpu"))
    await bench.estimator.estimate(bench.wanted(machine=("CUDA0=GPU-1",)))
    assert bench.runs == 4
    os.utime(bench.model, (1, 1))
    await bench.estimator.estimate(bench.wanted())
    assert bench.runs == 5


async def test_without_a_dry_run_the_formulas(bench: Bench) -> None:
    found = await bench.estimator.estimate(bench.wanted(fit_params=None))
    assert found.source is Source.ANALYTIC
    assert any("no llama-fit-params" in note for note in found.notes)
    assert found.footprint[HOST] > 64 * MIB + bench.model.stat().st_size // 2


async def test_a_dry_run_that_fails_is_said_and_tried_again(bench: Bench) -> None:
    bench.write("echo 'GGML_ASSERT(x) failed'; kill -ABRT $$")
    found = await bench.estimator.estimate(bench.wanted())
    assert found.source is Source.ANALYTIC
    assert any("GGML_ASSERT(x) failed" in note for note in found.notes)
    bench.answer(ROW)
    assert (await bench.estimator.estimate(bench.wanted())).source is Source.DRY_RUN


async def test_a_table_that_came_too_late_is_asked_for_again(bench: Bench) -> None:
    answer = bench.fit_params.read_text().rpartition("cat <<")[2]
    bench.write(
        f"if [ $(wc -l < {bench.folder}/runs) -lt 3 ]; then echo 'Host 1 1 1'; exit; fi\n"
        f"cat <<{answer}"
    )
    found = await bench.estimator.estimate(bench.wanted())
    assert found.source is Source.DRY_RUN
    assert bench.runs == 3
    assert found.footprint[HOST] > 100 * MIB


async def test_a_table_that_never_comes(bench: Bench) -> None:
    bench.write("echo 'Host 200 1 1'")
    found = await bench.estimator.estimate(bench.wanted())
    assert found.source is Source.DRY_RUN
    assert bench.runs == 4
    assert found.footprint[HOST] > 200 * MIB


async def test_a_file_only_the_engine_can_read(bench: Bench, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(b"GGUF" + (99).to_bytes(4, "little") + bytes(100))
    wanted = bench.wanted("-np", "1", model=str(odd), files=(str(odd),))
    found = await bench.estimator.estimate(wanted)
    assert found.source is Source.DRY_RUN
    assert any("GGUF version 99" in note for note in found.notes)
    alone = replace(wanted, fit_params=None, variant="not in the cache")
    with pytest.raises(EstimateError, match="GGUF version 99"):
        await bench.estimator.estimate(alone)


async def test_a_missing_file_is_an_error(bench: Bench, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.gguf")
    with pytest.raises(EstimateError, match=r"gone\.gguf: No such file"):
        await bench.estimator.estimate(bench.wanted(model=gone, files=(gone,)))


async def test_the_second_load_is_the_measurement(bench: Bench) -> None:
    wanted = bench.wanted("-c", "512", "-np", "1")
    first = await bench.estimator.estimate(wanted)
    ready = first.footprint[HOST] - first.growth[HOST]
    assert await bench.estimator.learn_ready(wanted, first, {HOST: ready}, 3.0) == ""
    second = await bench.estimator.estimate(wanted)
    assert second.source is Source.MEASURED
    assert second.footprint == first.footprint
    # A life that took more than was thought corrects it.
    await bench.estimator.learn_peak(wanted, {HOST: ready + 500 * MIB})
    third = await bench.estimator.estimate(wanted)
    assert third.footprint == {HOST: ready + 500 * MIB}
    # The next life's readiness says nothing new of what comes with use.
    await bench.estimator.learn_ready(wanted, third, {HOST: ready}, 3.0)
    assert (await bench.estimator.estimate(wanted)).footprint == third.footprint


async def test_what_was_learned_is_another_presets_only_with_the_same_arguments(
    bench: Bench,
) -> None:
    wanted = bench.wanted("-c", "512")
    first = await bench.estimator.estimate(wanted)
    await bench.estimator.learn_ready(wanted, first, {HOST: 99 * MIB}, None)
    os.utime(bench.model, (5, 5))
    assert (await bench.estimator.estimate(wanted)).source is Source.MEASURED
    for other in (
        bench.wanted("-c", "1024"),
        replace(wanted, variant="lean"),
        replace(wanted, engine="b2-cpu"),
        replace(wanted, env={"GGML_X": "1"}),
    ):
        assert (await bench.estimator.estimate(other)).source is Source.DRY_RUN


async def test_what_was_measured_with_another_meaning_is_not_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by this version, nor by an earlier one that is installed again."""
    wanted = bench.wanted("-c", "512")
    worked_out = await bench.estimator.work_out(wanted)
    monkeypatch.setattr(questions, "SCHEMA", SCHEMA - 1)
    await bench.estimator.learn_ready(wanted, worked_out, {HOST: 990 * MIB}, None)
    earlier = await bench.estimator.estimate(wanted)
    assert earlier.source is Source.MEASURED
    monkeypatch.setattr(questions, "SCHEMA", SCHEMA)
    assert (await bench.estimator.estimate(wanted)).source is Source.DRY_RUN
    await bench.estimator.learn_ready(wanted, worked_out, {HOST: 99 * MIB}, None)
    monkeypatch.setattr(questions, "SCHEMA", SCHEMA - 1)
    assert await bench.estimator.estimate(wanted) == earlier


async def test_what_must_stay_of_its_files_is_known_of_every_kind_of_preset(bench: Bench) -> None:
    wanted = bench.wanted("-np", "1")
    worked_out = await bench.estimator.estimate(wanted)
    assert await bench.estimator.in_place(wanted) == worked_out.in_place > 0
    declared = replace(wanted, declared={HOST: 7 * MIB})
    analytic = await bench.estimator.analytic(wanted)
    assert await bench.estimator.in_place(declared) == analytic.in_place
    assert await bench.estimator.in_place(replace(wanted, is_program=True)) is None
    gone = replace(wanted, model="/no/such.gguf", files=("/no/such.gguf",))
    assert await bench.estimator.in_place(gone) is None


async def test_a_device_that_could_not_be_measured_is_worked_out(bench: Bench) -> None:
    bench.answer(ROW, {**ROW, "kind": "device", "name": "CUDA0"})
    wanted = bench.wanted(gpus=("CUDA0",), machine=("CUDA0=GPU-1",))
    first = await bench.estimator.estimate(wanted)
    await bench.estimator.learn_ready(wanted, first, {HOST: 99 * MIB}, None)
    found = await bench.estimator.estimate(wanted)
    assert found.source is Source.MEASURED
    assert found.footprint["CUDA0"] == first.footprint["CUDA0"]
    assert found.footprint[HOST] == 99 * MIB + first.growth[HOST]
    assert any("CUDA0 could not be measured" in note for note in found.notes)


async def test_a_wrong_estimate_is_reported_once(bench: Bench) -> None:
    wanted = bench.wanted("-np", "1")
    first = await bench.estimator.estimate(wanted)
    use = {HOST: 3 * first.footprint[HOST]}
    said = await bench.estimator.learn_ready(wanted, first, use, None)
    assert said.startswith("host: ")
    assert "were expected (dry-run)" in said
    assert "%" in said
    assert await bench.estimator.learn_ready(wanted, first, use, None) == ""


def test_five_percent_is_no_surprise() -> None:
    said = Estimate(Source.DRY_RUN, (Part(HOST, "weights", 100 * MIB),))
    assert surprise(said, {HOST: 96 * MIB}) == ""
    assert surprise(said, {HOST: 105 * MIB}) == ""
    assert "(-50%)" in surprise(said, {HOST: 200 * MIB})
    wrong = "CUDA0: 0 B were expected (dry-run), the model takes 10 B (-100%)"
    assert surprise(said, {"CUDA0": 10}) == wrong
