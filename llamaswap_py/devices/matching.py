"""Finds which card a listed device is: an engine's list has descriptions and sizes, no ids. Pure.

A match needs the order, the description and the total to agree. Where several cards would do, there
is no match: figures of the wrong card are worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llamaswap_py.devices.device import Device
    from llamaswap_py.llamacpp.device_list import ListedDevice

_LEAST, _MOST = 0.85, 1.05
"""CUDA counts up to a tenth less than NVML, which counts the driver's own share."""
_MANY: Final = 4_096
"""Descriptions that are kept: each is compared with those of all other devices."""
_SOFTWARE: Final = re.compile(r"llvmpipe|lavapipe|swiftshader|softpipe|basic render|\bpocl\b", re.I)
_VENDORS: Final = {
    "nvidia": re.compile(r"nvidia|geforce|quadro|tesla|\brtx\b|\bgtx\b", re.I),
    "amd": re.compile(r"\bamd\b|radeon|\bgfx\d", re.I),
    "intel": re.compile(r"intel", re.I),
    "apple": re.compile(r"\bapple\b", re.I),
}
# Intel's cards have a model number; its integrated GPUs are `Arc Graphics`, `Iris Xe`, `UHD …`.
_INTEL_CARD: Final = re.compile(r"arc\S*\s+(pro\s+)?[ab]\d|data center|flex|max \d|\bdg1\b", re.I)


@lru_cache(maxsize=_MANY)
def vendor_of(description: str) -> str:
    """Return the vendor that a description names; "" if none."""
    return next((name for name, words in _VENDORS.items() if words.search(description)), "")


def is_software(description: str) -> bool:
    """Return whether a driver computes on the CPU, in the memory of the process itself."""
    return _SOFTWARE.search(description) is not None


def is_integrated(description: str) -> bool:
    """Return whether a description alone shows that a GPU's memory is the host's."""
    vendor = vendor_of(description)
    return vendor == "apple" or (vendor == "intel" and not _INTEL_CARD.search(description))


@lru_cache(maxsize=_MANY)
def plain_description(description: str) -> str:
    """Return a description as all backends would say it: `AMD … (RADV NAVI31)` is `amd…`."""
    text = re.sub(r"\((r|tm)\)", "", description.lower())
    text = re.sub(r"\(.*\)\s*$", "", text)
    return re.sub(r"[^a-z0-9]", "", text.replace("nvidia", ""))


def match_cards(listed: Sequence[ListedDevice], cards: Sequence[Device]) -> list[Device | None]:
    """Return the card of each listed device, None where it is not certain.

    `cards` come in the order in which the backend counts them. If the two lists agree throughout,
    the order decides between equal cards. Else only a card that is the only one to agree counts.
    """
    if len(listed) == len(cards) and all(map(agree, listed, cards)):
        return list(cards)
    fitting = [[card for card in cards if agree(one, card)] for one in listed]
    return [
        found[0] if len(found) == 1 and sum(found[0] in other for other in fitting) == 1 else None
        for found in fitting
    ]


def agree(listed: ListedDevice, card: Device) -> bool:
    """Return whether a listed device can be this card."""
    known = plain_description(card.description) if card.source == "nvml" else ""
    if known:  # sysfs knows the vendor only
        if known != plain_description(listed.description):
            return False
    elif vendor_of(listed.description) != (vendor_of(card.description) or "nvidia"):
        return False
    if card.within is not None or not listed.total or not card.total:
        return True  # the size of a part of main memory is counted in many ways
    return _LEAST * card.total <= listed.total <= _MOST * card.total


def alike(one: ListedDevice, other: ListedDevice) -> bool:
    """Return whether two backends may mean the same card, which has no id in either list."""
    if plain_description(one.description) == plain_description(other.description):
        return True
    vendor = vendor_of(one.description)
    if not vendor or vendor != vendor_of(other.description):
        return False
    return _LEAST * one.total <= other.total <= one.total / _LEAST
