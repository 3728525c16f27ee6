"""Which settings are sought for a model that does not fit; the estimator is a stand-in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from llamaswap_py.estimate import Estimate, Part, Source, Wanted
from llamaswap_py.estimate import remedies as module
from llamaswap_py.estimate.remedies import Leaner, Remedies
from llamaswap_py.estimate.types import EstimateError
from llamaswap_py.llamacpp.memory_settings import ALL, read_settings
from llamaswap_py.units import GIB, HOST
from tests.estimate.models import model

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio
KNOWN = ("--load-mode", "--ctx-size", "--n-gpu-layers", "--n-cpu-moe", "--cache-ram")


class Counted:
    """Estimates: 8 GiB of weights, 1 GiB for each 8k of context, 1 GiB of prompt cache."""

    def __init__(self, *, gpu: bool = False, experts: int = 0) -> None:
        self.gpu, self.experts, self.runs = gpu, experts, 0

    async def work_out(self, wanted: Wanted) -> Estimate:
        self.runs += 1
        said = read_settings(wanted.args)
        context = said.context * GIB // 8192
        layers = min(said.gpu_layers, 32) if said.gpu_layers != ALL else 32
        on_gpu = layers * 8 * GIB // 32
        if self.experts:
            on_gpu -= said.cpu_expert_layers * 6 * GIB // 32
        if not self.gpu:
            parts = [Part(HOST, "weights", 8 * GIB), Part(HOST, "context", context)]
        else:
            parts = [Part("CUDA0", "weights", on_gpu), Part("CUDA0", "context", context)]
            parts.append(Part(HOST, "weights", 8 * GIB - on_gpu))
        if said.prompt_cache:
            parts.append(Part(HOST, "prompt cache", GIB))
        return Estimate(Source.DRY_RUN, tuple(parts))


async def seek(
    counted: Counted,
    room: Mapping[str, int],
    *args: str,
    extra: tuple[str, ...] = (),
    measured: int = 0,
    within: Mapping[str, str | None] | None = None,
) -> list[Leaner]:
    wanted = Wanted(
        "alpha",
        "/a.gguf",
        ("--cache-ram", "1024", *args, *extra),
        ("/a.gguf",),
        gpus=("CUDA0",) if counted.gpu else (),
    )
    estimate = await counted.work_out(wanted)
    if measured:
        estimate = Estimate(Source.MEASURED, (Part(HOST, "at readiness", measured),))
    seeking = Remedies(
        cast("Any", counted), wanted, estimate, room, within=within or {}, known=KNOWN, extra=extra
    )
    return await seeking.seek()


@pytest.fixture(autouse=True)
def header(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = model(context_length=131072)
    monkeypatch.setattr(module, "open_header", lambda _: shape)


def words(found: list[Leaner]) -> list[str]:
    return [one.words for one in found]


async def test_what_costs_nothing_comes_first_then_the_longest_context() -> None:
    found = await seek(Counted(), {HOST: 16 * GIB}, "--ctx-size", "65536", "-np", "1")
    assert words(found) == ["`memory.cache_ram: 0`", "`ctx-size: 32768`"]
    assert [one.footprint[HOST] for one in found] == [16 * GIB, 13 * GIB]


async def test_how_a_file_is_loaded_is_no_remedy() -> None:
    """The pages beside a rearranged copy are not charged, so not mapping it saves nothing."""
    for measured in (0, 27 * GIB):
        args = "--ctx-size", "65536", "-np", "1"
        found = await seek(Counted(), {HOST: 9 * GIB}, *args, measured=measured)
        assert found
        assert not any("mode" in one.words or "mmap" in one.words for one in found)


async def test_settings_are_joined_where_none_is_enough_alone() -> None:
    least = 8 * GIB + GIB // 2
    found = await seek(Counted(), {HOST: least}, "--ctx-size", "131072", "-np", "1")
    assert words(found) == ["`memory.cache_ram: 0` and `ctx-size: 4096`"]
    assert found[0].footprint[HOST] == least
    assert found[0].entry is None  # one of them is not an option of the entry


async def test_the_least_is_told_where_nothing_is_enough() -> None:
    (found,) = await seek(Counted(), {HOST: 4 * GIB}, "--ctx-size", "131072", "-np", "1")
    assert "`ctx-size: 4096`" in found.words
    assert found.footprint[HOST] > 4 * GIB


async def test_a_card_gets_fewer_layers_or_a_shorter_context() -> None:
    room = {"CUDA0": 9 * GIB, HOST: 32 * GIB}
    found = await seek(Counted(gpu=True), room, "--ctx-size", "32768", "-np", "1")
    assert words(found) == ["`ctx-size: 8192`", "`n-gpu-layers: 16`"]
    assert found[1].footprint == {"CUDA0": 8 * GIB, HOST: 5 * GIB}


async def test_experts_leave_the_card_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = model(context_length=131072, experts=8)
    monkeypatch.setattr(module, "open_header", lambda _: shape)
    room = {"CUDA0": 9 * GIB, HOST: 32 * GIB}
    found = await seek(Counted(gpu=True, experts=8), room, "--ctx-size", "32768", "-np", "1")
    assert "`n-cpu-moe: 16`" in words(found)


async def test_what_extra_says_cannot_be_changed() -> None:
    found = await seek(Counted(), {HOST: 16 * GIB}, "-np", "1", extra=("-c", "65536"))
    assert words(found) == ["`memory.cache_ram: 0`"]


async def test_what_was_measured_beyond_the_estimate_is_kept() -> None:
    args = "--ctx-size", "65536", "-np", "1"
    found = await seek(Counted(), {HOST: 18 * GIB}, *args, measured=19 * GIB)  # 17 worked out
    assert words(found) == ["`memory.cache_ram: 0`", "`ctx-size: 32768`"]
    assert [one.footprint[HOST] for one in found] == [18 * GIB, 15 * GIB]


async def test_a_file_that_cannot_be_read_hinders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise EstimateError(f"{path}: no")

    monkeypatch.setattr(module, "open_header", broken)
    found = await seek(Counted(), {HOST: 16 * GIB}, "--ctx-size", "65536", "-np", "1")
    assert words(found) == ["`memory.cache_ram: 0`"]


async def test_few_runs_are_made() -> None:
    counted = Counted()
    await seek(counted, {HOST: 4 * GIB}, "--ctx-size", "131072", "-np", "1")
    assert counted.runs <= 12


async def test_memory_that_devices_share_counts_for_both() -> None:
    """An integrated GPU computes in main memory: 16 layers there and 16 beside take all of it."""
    room = {"CUDA0": 9 * GIB, HOST: 10 * GIB}
    shared: dict[str, str | None] = {"CUDA0": HOST}
    args = "--ctx-size", "32768", "-np", "1"
    found = await seek(Counted(gpu=True), room, *args, within=shared)
    assert words(found) == ["`ctx-size: 8192`"], "layers on the host take the same memory"
