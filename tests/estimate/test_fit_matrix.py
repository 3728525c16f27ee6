"""`python -m bench.fit_matrix`: its files, its machines, and what its rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bench.fit_bare import Bare, fit_alone
from bench.fit_machines import LOWERED, MACHINES, Lent, Machine, placements
from bench.fit_matrix import Row, Setting, measure, render
from bench.markers import begin, write_into
from bench.shape_files import write_shape
from llamaswap_py.estimate import Estimate, Part, Source
from llamaswap_py.estimate.files import open_header
from llamaswap_py.estimate.fitter import FitStep, Fitted
from llamaswap_py.llamacpp.probe import probe_engine
from llamaswap_py.units import GIB, HOST, MIB
from tests.estimate.shapes import SHAPES

TWO = Machine("24 and 12 GiB cards", (24, 12), 64)
LENT = [Lent("RPC0", "127.0.0.1:1", 7, 20 * GIB), Lent("RPC1", "127.0.0.1:2", 8, 20 * GIB)]


# Machines and files


def test_each_card_alone_comes_before_all_of_them() -> None:
    small, large, both = placements(TWO, LENT)
    assert [one.names for one in (small, large, both)] == [("RPC1",), ("RPC0",), ("RPC0", "RPC1")]
    assert small.args == ("--rpc", "127.0.0.1:2")
    assert small.engine_names == {"RPC0": "RPC1"}  # the engine numbers what it is told of
    assert both.args == ("--rpc", "127.0.0.1:1,127.0.0.1:2")
    assert both.room() == {"RPC0": 23 * GIB, "RPC1": 11 * GIB, HOST: 63 * GIB}
    assert [both.room(size)[HOST] // MIB for size in LOWERED] == [
        64 * 1024 - size for size in (512, 256, 128)
    ]


def test_the_engine_leaves_free_what_the_machine_does_not_have() -> None:
    """20 GiB are reported: a card of 12 has 9 less the margin; one of 24 has 3 more than that."""
    both = placements(TWO, LENT)[-1]
    assert both.fit_target == f"{-3 * 1024},{9 * 1024}"
    (host,) = placements(Machine("host only", (), 4), LENT)
    assert host.fit_target == str((psutil.virtual_memory().total - 3 * GIB) // MIB)


def test_there_are_twelve_shapes_and_six_machines() -> None:
    assert len(SHAPES) == 12
    assert len(MACHINES) == 6


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_has_the_tensors_of_its_shape(name: str, tmp_path: Path) -> None:
    shape = replace(SHAPES[name], vocabulary=SHAPES[name].vocabulary // 64 * 2)
    write_shape(tmp_path / "model.gguf", shape)
    written = open_header(str(tmp_path / "model.gguf"))
    sizes = {one.name: one.size for one in written.tensors}
    expected = {one.name: one.size for one in shape.header.tensors}
    if shape.architecture == "qwen3next":  # three of four layers have a state instead
        expected = {key: size for key, size in expected.items() if "attn_" not in key}
    assert expected.items() <= sizes.items()
    assert written.integer("block_count") == shape.layers
    assert written.integer("attention.head_count") % shape.kv_heads == 0
    status = (tmp_path / "model.gguf").stat()
    assert status.st_size > sum(sizes.values())
    assert status.st_blocks * 512 < max(status.st_size // 10, 8 * MIB)


@pytest.mark.parametrize("name", ["moe-small", "sliding-window", "hybrid", "with-projector"])
def test_the_engine_opens_a_file(name: str, llama_server: str, tmp_path: Path) -> None:
    fit_params = probe_engine(Path(llama_server), "test").fit_params
    if fit_params is None:
        pytest.skip("missing: llama-fit-params")
    model = tmp_path / "model.gguf"
    write_shape(model, SHAPES[name])
    (machine,) = placements(Machine("host only", (), 4096), [])
    bare = fit_alone(fit_params, model, machine, 0)
    assert bare.runs, bare.why
    assert bare.context == SHAPES[name].trained
    assert bare.footprint[HOST] > bare.weights[HOST]
    size = sum(one.size for one in open_header(str(model)).tensors)
    assert size * 0.98 < bare.weights[HOST] < size * 2


def test_what_the_host_cannot_hold_does_not_run(llama_server: str, tmp_path: Path) -> None:
    """llama.cpp's fit leaves rearranged weights out: it takes less than it needs as enough."""
    fit_params = probe_engine(Path(llama_server), "test").fit_params
    if fit_params is None:
        pytest.skip("missing: llama-fit-params")
    model = tmp_path / "model.gguf"
    write_shape(model, replace(SHAPES["dense-70b"], vocabulary=2000))
    (machine,) = placements(Machine("host only", (), 16), [])
    bare = fit_alone(fit_params, model, machine, 0)
    assert not bare.runs
    assert "of 16 GiB on host" in bare.why
    missing = fit_alone(fit_params, tmp_path / "none.gguf", machine, 0)
    assert not missing.runs
    assert missing.why.startswith("status 1: ")


# Rows


def row(*, bare: Bare | None, fits: bool = True, context: int = 8192, device: int = GIB) -> Row:
    words = ("--ctx-size", str(context), "--n-gpu-layers", "17")
    step = FitStep(3, words, context, 131072, 1, 17, 17, 0)
    parts = (Part("RPC0", "weights", device), Part(HOST, "weights", GIB))
    fitted = Fitted(step if fits else None, Estimate(Source.DRY_RUN, parts), (), fits)
    (placement,) = placements(Machine("6 GiB card", (6,), 16), LENT)
    return Row("dense-1b", placement.machine, bare, placement, fitted)


RUNS = Bare(("-c", "16384", "-ngl", "17"), weights={"RPC0": 2 * GIB, HOST: GIB}, left=5 * GIB)


def test_a_row_where_the_engine_alone_runs() -> None:
    assert row(bare=RUNS, fits=False).refused
    assert not row(bare=RUNS).refused
    assert not row(bare=replace(RUNS, why="it needs 20 GiB of 16 GiB on host"), fits=False).refused
    assert not row(bare=None, fits=False).refused


def test_a_row_where_the_engine_alone_takes_the_margin_of_the_host() -> None:
    """It runs all the same, so it counts like any other."""
    tight = replace(RUNS, left=GIB - 1)
    assert row(bare=tight, fits=False).refused
    assert not row(bare=tight).refused


def test_a_row_with_less_of_both() -> None:
    assert row(bare=RUNS).less_of_both
    assert not row(bare=RUNS, device=2 * GIB).less_of_both
    assert not row(bare=RUNS, context=16384).less_of_both
    assert not row(bare=None).less_of_both


def test_the_page_names_the_rows(tmp_path: Path, llama_server: str) -> None:
    setting = Setting(probe_engine(Path(llama_server), "test"), tmp_path, LENT, GIB)
    tight = replace(row(bare=replace(RUNS, left=400 * MIB)), margin=512 * MIB)
    text = render([row(bare=RUNS), row(bare=RUNS, fits=False), row(bare=None), tight], setting)
    assert "4 rows, 3 of them compared" in text
    assert (
        "* dense-1b on 6 GiB card: nothing smaller fits, so lswap lowers the margin to 512 MiB; "
        "the engine alone would leave 400 MiB of the host's 16 GiB\n"
    ) in text
    assert "all 17 layers on RPC0: 1 GiB of weights; margin 512 MiB" in text
    assert "the engine alone runs and lswap does not: 1 (dense-1b on 6 GiB card)" in text
    assert "16,384 context, 2 GiB of weights on devices" in text
    assert "8,192 of 131,072 context, all 17 layers on RPC0: 1 GiB of weights" in text
    assert "RPC0 5 GiB, host 15 GiB" in text
    assert "not asked" in text


def test_one_shape_by_dry_runs_formulas_and_a_load(llama_server: str, tmp_path: Path) -> None:
    engine = probe_engine(Path(llama_server), "test")
    if engine.fit_params is None:
        pytest.skip("missing: llama-fit-params")
    setting = Setting(engine, tmp_path, [Lent("CUDA0"), Lent("CUDA1")], 2 * GIB)
    machines = [one for one in MACHINES if one.name in {"host only", "6 GiB card"}]
    card, host = measure(setting, ["tiny-context"], machines, lambda _: None)
    assert card.bare is None
    assert card.cells()[2] == "not asked"
    assert card.cells()[-1] == "formula"
    assert host.bare is not None
    assert host.bare.runs
    assert host.fitted.fits
    assert host.real.startswith("real load: host ")
    assert not list(tmp_path.glob("tmp*"))


def test_a_table_is_put_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin('make it')}\nold\n<!-- end of table -->\nafter\n")
    write_into(page, "make it", "new")
    assert page.read_text() == (
        f"before\n{begin('make it')}\n\nnew\n\n<!-- end of table -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="are not both in it"):
        write_into(page, "make another", "new")
