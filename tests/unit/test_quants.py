"""Which quantisation `lswap pull` takes, and how it says so."""

from __future__ import annotations

import pytest

from llamaswap_py.cli.quants import Quant, best, described, judge, least, short, verdict
from llamaswap_py.estimate.contexts import Overheads
from llamaswap_py.hub.refs import Build, HubFile
from llamaswap_py.units import GIB

CARD, HOST = 8, 32
ROOM = {"CUDA0": CARD * GIB, "host": HOST * GIB}
ONLY_HOST = {"host": HOST * GIB}
BESIDE = Overheads(
    16384,
    {
        "CUDA0": {4096: 1 * GIB, 16384: 2 * GIB, 32768: 3 * GIB, 65536: 5 * GIB},
        "host": {4096: 2 * GIB, 16384: 3 * GIB, 32768: 4 * GIB, 65536: 6 * GIB},
    },
)


def build(name: str, size: float, files: int = 1) -> Build:
    each = round(size * GIB / files)
    return Build(name, tuple(HubFile(f"m-{name}-{at}.gguf", each) for at in range(files)))


def quants(
    *sizes: tuple[str, float],
    room: dict[str, int] | None = None,
    beside: Overheads | None = BESIDE,
) -> list[Quant]:
    return [judge(build(*one), ROOM if room is None else room, beside) for one in sizes]


Q4, Q6, Q8, BF16 = ("Q4_K_M", 4.7), ("Q6_K", 6.2), ("Q8_0", 8.0), ("BF16", 15.0)


def test_a_build_is_judged_by_its_context() -> None:
    one = judge(build("Q4_K_M", 4, files=2), ROOM, BESIDE)
    assert one == Quant(
        "Q4_K_M",
        4 * GIB,
        2,
        ["CUDA0", "host"],
        {"CUDA0": 6 * GIB, "host": 7 * GIB},
        16384,
        {"CUDA0": 32768, "host": 65536},
    )
    assert one.where == "CUDA0 with 32k context, host with 64k"


def test_less_context_than_asked_for_is_told_but_is_no_fit() -> None:
    one = judge(build("Q6_K", 7), ROOM, BESIDE)
    assert one.fits == ["host"]
    assert one.contexts == {"CUDA0": 4096, "host": 65536}
    none = judge(build("F16", 40), ROOM, BESIDE)
    assert (none.fits, none.contexts, none.where) == ([], {}, "")


def test_without_a_header_the_size_decides() -> None:
    one = judge(build("Q4_K_M", 7), ROOM, None)
    assert one.fits == ["CUDA0", "host"]
    assert one.needs == dict.fromkeys(ROOM, round(7 * GIB * 1.1))
    assert (one.context, one.contexts, one.where) == (0, {}, "CUDA0, host")
    assert judge(build("Q8_0", 7.5), ROOM, None).fits == ["host"]


@pytest.mark.parametrize(
    ("sizes", "room", "expected"),
    [
        ([Q4, Q6, Q8], ROOM, "Q4_K_M"),
        ([Q4, ("Q5_K_M", 5.5), Q6], ROOM, "Q5_K_M"),
        ([Q4, Q6, Q8, BF16], ONLY_HOST, "Q8_0"),
        ([("Q6_K", 20.0), ("Q8_0", 25.0)], ROOM, "Q8_0"),
        ([("BF16", 3.0)], ROOM, "BF16"),
        ([("BF16", 3.0), Q4], ROOM, "Q4_K_M"),
        ([("Q6_K", 200.0)], ROOM, None),
        ([], ROOM, None),
    ],
    ids=["a card", "the largest", "host alone", "host", "no choice", "8 bits", "none", "empty"],
)
def test_the_largest_that_fits_a_card_is_best(
    sizes: list[tuple[str, float]],
    room: dict[str, int],
    expected: str | None,
) -> None:
    found = quants(*sizes, room=room)
    at = best(found)
    assert (None if at is None else found[at].quantisation) == expected


@pytest.mark.parametrize(
    ("sizes", "beside", "expected"),
    [
        (
            [Q4, ("Q8_0", 40.0)],
            BESIDE,
            (
                "Q4_K_M: 4.7 GiB, fits CUDA0 with 32k context, host with 64k; "
                "Q8_0 does not fit with 16k"
            ),
        ),
        (
            [Q4, Q6],
            BESIDE,
            (
                "Q4_K_M: 4.7 GiB, fits CUDA0 with 32k context, host with 64k; "
                "Q6_K does not fit a card with 16k"
            ),
        ),
        ([Q4, BF16], BESIDE, "Q4_K_M: 4.7 GiB, fits CUDA0 with 32k context, host with 64k"),
        (
            [Q4, ("Q8_0", 40.0)],
            None,
            "Q4_K_M: 4.7 GiB, fits CUDA0, host; Q8_0 does not fit",
        ),
    ],
    ids=["too large", "not for the card", "nothing larger", "by size"],
)
def test_the_choice_is_told_with_its_reason(
    sizes: list[tuple[str, float]], beside: Overheads | None, expected: str
) -> None:
    found = quants(*sizes, beside=beside)
    at = best(found)
    assert at == 0
    assert verdict(found, at) == expected


def test_what_fits_nowhere_is_told() -> None:
    found = quants(("Q6_K", 200.0), ("Q8_0", 250.0))
    assert described(found[0]) == "Q6_K: 200 GiB, fits no device here"
    assert least(found) == "202 GiB with 16k"


@pytest.mark.parametrize(("tokens", "text"), [(4096, "4k"), (131072, "128k"), (5000, "5000")])
def test_contexts_are_short(tokens: int, text: str) -> None:
    assert short(tokens) == text
