"""Two faults at once. Every fault is in one pair; `FAULT_PAIRS=all` tries every pair there is."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.faults import FAULTS, Fault
from tests.faults.play import play

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
_HALF = (len(FAULTS) + 1) // 2
PAIRS = (
    list(itertools.combinations(FAULTS, 2))
    if os.environ.get("FAULT_PAIRS") == "all"
    else [(FAULTS[n], FAULTS[(n + _HALF) % len(FAULTS)]) for n in range(_HALF)]
)


def test_every_fault_is_in_a_pair() -> None:
    assert {one.name for pair in PAIRS for one in pair} == {one.name for one in FAULTS}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(map(str, pair)))
async def test_two_faults(
    lab: Lab, pair: tuple[Fault, Fault], request: pytest.FixtureRequest
) -> None:
    settable = any(one.clock for one in pair)
    await play(lab, *pair, clock=request.getfixturevalue("clock") if settable else None)
