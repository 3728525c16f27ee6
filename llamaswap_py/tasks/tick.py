"""When those who look now and then do so: all at once, so that the process is woken once for all.

A supervisor with nothing to do has half a dozen things to look at every few seconds. Each on a
timer of its own wakes the processor as often as there are things; on a common beat, once.
"""

from __future__ import annotations

from typing import Final

BEAT: Final = 2.0
"""Seconds. Who looks less often takes a multiple of it, and is woken together with the others."""


def until_beat(now: float, period: float = BEAT) -> float:
    """Return the seconds to sleep until the next multiple of `period` on the clock of `now`.

    At least a 64th of the period, so that a timer that fires a little early is not a second beat.
    """
    rest = period - now % period
    return rest if rest >= period / 64 else rest + period
