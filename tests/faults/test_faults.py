"""Every fault alone, while clients ask for its victim and for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.faults import FAULTS, Fault
from tests.faults.play import play

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_fault(lab: Lab, fault: Fault, request: pytest.FixtureRequest) -> None:
    await play(lab, fault, clock=request.getfixturevalue("clock") if fault.clock else None)
