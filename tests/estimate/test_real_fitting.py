"""The search against a real llama-fit-params: the first step that its figures let fit is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.estimate_models import ModelShape, write_model
from llamaswap_py.estimate import Estimate, Estimator, Source, Wanted
from llamaswap_py.estimate.files import open_header
from llamaswap_py.estimate.fitter import Fitter, FitWish
from llamaswap_py.estimate.fitting import fit_steps
from llamaswap_py.llamacpp.memory_settings import read_settings
from llamaswap_py.llamacpp.probe import probe_engine
from llamaswap_py.storage import LearnedFacts, RecordFolder
from llamaswap_py.units import HOST

pytestmark = pytest.mark.anyio

SHAPES = {
    "rearranged": ModelShape(
        layers=16, width=2048, heads=16, kv_heads=4, feed_forward=5632, kind="Q4_0"
    ),
    "moe": ModelShape(layers=4, kv_heads=2, feed_forward=1024, experts=32, experts_used=4),
    "sliding-window": ModelShape(
        arch="gemma3",
        layers=12,
        heads=4,
        kv_heads=4,
        head_size=256,
        feed_forward=4096,
        window=512,
        tied=True,
    ),
}
WISH = FitWish(want=65536)
"""The files say that they were trained for so much."""


@pytest.mark.parametrize("name", SHAPES)
async def test_the_step_is_the_first_that_a_dry_run_lets_fit(
    name: str, llama_server: str, tmp_path: Path
) -> None:
    engine = probe_engine(Path(llama_server), "test")
    if engine.fit_params is None:
        pytest.skip("missing: llama-fit-params")
    model = tmp_path / "model.gguf"
    write_model(model, SHAPES[name])
    args = ("--model", str(model), "--cache-ram", "128")
    wanted = Wanted(
        name, str(model), args, (str(model),), engine=engine.label, fit_params=engine.fit_params
    )
    cache = RecordFolder(tmp_path / "cache", Estimate, version=1)
    estimator = Estimator(LearnedFacts(tmp_path / "learned"), cache)
    steps = fit_steps(open_header(str(model)), read_settings(args), (), (), WISH)
    needs: list[int] = []
    for step in steps:
        dry = await estimator.work_out(replace(wanted, args=(*args, *step.words)))
        assert dry.source is Source.DRY_RUN
        needs.append(dry.footprint[HOST])
    for room in (needs[0], needs[0] - 1, needs[5], needs[8] - 1, min(needs), min(needs) - 1):
        expected = next((at for at, need in enumerate(needs) if need <= room), None)
        fresh = Estimator(LearnedFacts(tmp_path / "learned"), folder_for(tmp_path, room))
        found = await Fitter(fresh).fit(wanted, {HOST: room}, WISH, said=())
        assert (found.step and found.step.rank) == expected
        assert found.fits is (expected is not None)
        if expected is not None:
            assert found.estimate.source is Source.DRY_RUN
            assert found.estimate.footprint[HOST] == needs[expected]


def folder_for(folder: Path, room: int) -> RecordFolder[Estimate]:
    """Return a folder of its own for each search: it makes its dry runs itself."""
    return RecordFolder(folder / str(room), Estimate, version=1)
