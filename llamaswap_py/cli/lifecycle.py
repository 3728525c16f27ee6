"""The commands about lswap itself: `status`, `stop`. Their work is in other modules."""

from __future__ import annotations

from typing import Annotated

import typer

from llamaswap_py.cli.asking import Key, Url
from llamaswap_py.cli.starting import Json


def status(as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Say which lswaps run here, where, since when, and what is loaded; exits 3 if none runs."""
    from llamaswap_py.cli.status import run

    run(url, key, as_json=as_json)


def stop(
    now: Annotated[
        bool, typer.Option("--now", help="End running requests instead of waiting for them.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Stop the lswap that runs here, as Ctrl-C does: running requests may end. Waits for its end.

    With --now as a second Ctrl-C does: at once.
    """
    from llamaswap_py.cli.stop import run

    run(url, key, now=now, as_json=as_json)
