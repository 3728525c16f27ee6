"""Counts the bytes of large request bodies in memory, by client, and limits them.

A body that does not fit is refused while it arrives, and its bytes are freed. No body waits for
another one, so none can wait for ever.
"""

from __future__ import annotations

from typing import Final

from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.principals import is_key
from llamaswap_py.units import KIB, MIB, format_size

UNLIMITED: Final = 1 << 62
FREE: Final = 256 * KIB
"""The first bytes of each body, which are not counted; almost all bodies have no more."""
_STEP: Final = MIB


class Bodies:
    """Counts bytes of large bodies by the owner of their connection."""

    def __init__(self, most: int = UNLIMITED) -> None:
        self.most = most
        self.taken = 0
        self.refused = 0
        self._by_owner: dict[str, int] = {}

    def take(self, owner: str) -> int:
        """Count the next bytes of an owner's body; raises ApiError `bodies_full`.

        Return how many were counted.
        """
        held = self._by_owner.get(owner, 0)
        share = self.most // 2 if is_key(owner) else self.most
        if self.taken + _STEP > self.most or held + _STEP > share:
            self.refused += 1
            raise ApiError(
                "bodies_full",
                f"the bodies of open requests take all of the {format_size(share)} allowed",
                remedy="send it again later, or raise limits.body_memory in the configuration",
                retry_after=5.0,
            )
        self.taken += _STEP
        self._by_owner[owner] = held + _STEP
        return _STEP

    def give_back(self, owner: str, size: int) -> None:
        """Subtract the bytes of a body that is no longer in memory."""
        self.taken -= size
        left = self._by_owner.get(owner, 0) - size
        if left > 0:
            self._by_owner[owner] = left
        else:
            self._by_owner.pop(owner, None)
