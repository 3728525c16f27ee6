"""The common beat of periodic checks: they all run at the same moments.

An idle supervisor checks half a dozen things every few seconds. If each had its own timer, the
processor would wake once for each; on a common beat it wakes once for all.
"""

from __future__ import annotations

from typing import Final

BEAT: Final = 2.0
"""Seconds. A rarer check takes a multiple of it, and so runs together with the others."""


def until_beat(now: float, period: float = BEAT) -> float:
    """Return the seconds to sleep until the next multiple of `period` on the clock of `now`.

    At least a 64th of the period, so that a timer that fires a little early is not a second beat.
    """
    rest = period - now % period
    return rest if rest >= period / 64 else rest + period
