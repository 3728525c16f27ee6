"""Chooses the running lswap that a command talks to, if the user names none."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from llamaswap_py.children.running_lswaps import find_running
from llamaswap_py.client.address import DEFAULT_URL
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.children.running_lswaps import RunningLswap


def find_url(url: str | None) -> str:
    """Return the address to ask: `--url`, else that of the lswap that runs here.

    If several run, it is the one at the usual address, and a line on stderr says so. Raises
    ConfigError with all addresses if none of them is there. If this user runs none, it is the
    usual address, because lswap may run in a container or as another user.
    """
    if url:
        return url
    running = find_running(os.environ)
    if len(running) == 1 and running[0].url is not None:
        return running[0].url
    if len(running) < 2:
        return DEFAULT_URL
    others = [one for one in running if one.served is None or DEFAULT_URL not in one.served.urls]
    if len(others) == len(running):
        raise choose_one(running)
    listed = ", ".join(map(str, others))
    print(
        f"lswap: several run; using {DEFAULT_URL}. --url names another: {listed}",
        file=sys.stderr,
    )
    return DEFAULT_URL


def choose_one(running: Sequence[RunningLswap]) -> ConfigError:
    """Return the error that lists the running lswaps."""
    listed = ", ".join(map(str, running))
    return ConfigError(f"{len(running)} lswaps run here", remedy=f"name one with --url: {listed}")
