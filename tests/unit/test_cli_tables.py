"""Tables in a terminal: as wide as it is, whatever the names are, and nothing is cut."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from llamaswap_py.cli.show import MODEL_COLUMNS, PS_COLUMNS, device_line, print_why, ps_rows
from llamaswap_py.cli.tables import fitted_table, plain_table
from llamaswap_py.snapshot import DecisionView, DeviceView
from llamaswap_py.units import GIB
from tests.unit.api_fakes import failure_view, instance_view, make_snapshot, model_view

LONG = "Qwen3-Coder-480B-A35B-Instruct-UD-Q4_K_XL-with-a-projector-and-a-draft"
NAMES = ("alpha", LONG, "模型-七十亿-指令-量化版本", "modèle-très-long-avec-des-accents-Q4_K_M")
REASON = "makes room for beta (needs 18.5 GiB, 8.7 GiB were free)"


def ps(names: tuple[str, ...], width: int) -> str:
    models = [model_view(name, reason=f"gone: {REASON}") for name in names]
    models[-1:] = [model_view(names[-1], failure=failure_view(), state="failed")]
    running = [instance_view(names[0], reason="loaded in 2.1 s")]
    return fitted_table(PS_COLUMNS, ps_rows(make_snapshot(models, running), every=True), width)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_wider_than_the_terminal_and_no_name_is_broken(name: str, width: int) -> None:
    text = ps(tuple(f"{name}{at}" for at in range(30)), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for at in range(30):
        assert re.search(rf"^{re.escape(name)}{at}( |$)", text, re.MULTILINE)
    assert "unloaded to make room for beta" in re.sub(r"\s+", " ", text)


def test_columns_that_say_nothing_are_left_out() -> None:
    head = ps(("alpha", "beta"), 200).splitlines()[0].split()
    assert head[:3] == ["MODEL", "STATE", "REQUESTS"]
    assert "WAITING" not in head
    rows = [("alpha", "0", "-", "", "why"), ("beta", "0", "-", "", "")]
    assert fitted_table(("model", "state", "a", "b", "c"), rows, 80).split()[:3] == [
        *("MODEL", "STATE", "C")
    ]


def test_short_tables_are_aligned_in_cells() -> None:
    rows = [("模型", "ready", "1"), ("alpha", "ready", "22")]
    for table in (fitted_table(("model", "state", "n"), rows, 80), plain_table("abc", rows)):
        ends = {cell_len(line[: line.index("ready")]) for line in table.splitlines()[1:]}
        assert ends == {7}


def test_a_table_without_rows_is_its_head() -> None:
    assert fitted_table(MODEL_COLUMNS, [], 80) == "MODEL  STATE"


def test_several_long_columns_go_below_with_their_names() -> None:
    aliases = ", ".join(f"alias-number-{at}" for at in range(9))
    row = (
        "alpha",
        "failed",
        "16,384",
        "host 1 GiB",
        "never",
        aliases,
        "there is no such file " * 3,
    )
    text = fitted_table(MODEL_COLUMNS, [row], 80)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "    aliases: alias-number-0, " in text


def test_why_says_when_and_for_whom_it_was_unloaded(capsys: pytest.CaptureFixture[str]) -> None:
    gone = DecisionView(seq=1, at=100.0, kind="gone", preset="alpha", epoch=1, reason=REASON)
    print_why(model_view("alpha", reason=f"gone: {REASON}"), [gone], 144.0)
    assert capsys.readouterr().out.splitlines()[0] == (
        "alpha: unloaded 44 s ago to make room for beta (needs 18.5 GiB, 8.7 GiB were free)"
    )


def test_why_says_what_a_model_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Also if it was loaded before: what it waits for now comes first."""
    gone = DecisionView(seq=1, at=100.0, kind="gone", preset="alpha", epoch=1, reason=REASON)
    reason = (
        "waiting for memory (host: needs 2 GiB · free 1 GiB); the memory is held by beta (1 GiB)"
    )
    for decisions in ([], [gone]):
        view = model_view("alpha", state="unloaded", waiting=1, reason=reason)
        print_why(view, decisions, 144.0)
        assert capsys.readouterr().out.splitlines()[0] == f"alpha is {reason}"


def test_a_device_that_is_not_measured_says_so_and_where_its_memory_is() -> None:
    card = DeviceView("SYCL0", 8 * GIB, GIB, GIB, "engine", strangers=None, free=6 * GIB)
    assert device_line(card) == (
        "SYCL0: 8 GiB – models 1 GiB, other programs not measured, kept free 1 GiB, available 6 GiB"
    )
    inside = DeviceView("Vulkan0", 8 * GIB, 0, GIB, "engine", strangers=None, within="host")
    assert device_line(inside).startswith("Vulkan0: 8 GiB of RAM – models 1 GiB, other programs")
    same = DeviceView("RPC1", 8 * GIB, 0, GIB, "engine", strangers=None, within="RPC0")
    assert device_line(same).startswith("RPC1, the same memory as RPC0: 8 GiB – models 1 GiB")
    measured = DeviceView("CUDA0", 8 * GIB, GIB, GIB, "nvml", free=6 * GIB)
    assert "other programs" not in device_line(measured)
