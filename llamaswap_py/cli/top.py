"""`lswap top`: opens the dashboard, if the terminal can show it."""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

from llamaswap_py.cli.asking import Key, Url
from llamaswap_py.cli.common import LOOKS
from llamaswap_py.errors import LswapError

app = typer.Typer(add_completion=False, **LOOKS)
_REMEDY: Final = "`watch -n 1 lswap ps` shows the same as plain text"


@app.command()
def top(url: Url = None, key: Key = None) -> None:
    """Open a dashboard of a running lswap in the terminal.

    It shows devices, models, requests, decisions and logs. Press ? to see its keys.
    """
    problem = terminal_problem(
        os.environ.get("TERM", ""), tty=sys.stdin.isatty() and sys.stdout.isatty()
    )
    if problem is not None:
        raise LswapError(problem, remedy=_REMEDY)
    from llamaswap_py.cli.servers import find_url
    from llamaswap_py.client import calls
    from llamaswap_py.client.remote import Remote

    url = find_url(url)
    with Remote(url, key=key) as remote:
        remote.ask(calls.state())  # report a wrong address or key before the screen is taken over
    import asyncio

    asyncio.run(_show(url, key))


def terminal_problem(term: str, *, tty: bool) -> str | None:
    """Return why this is not a terminal for a dashboard, or None."""
    if not tty:
        return "top needs a terminal, and this is not one"
    if term in ("", "dumb", "unknown"):
        return f"top needs a terminal that can move its cursor, and TERM is {term or 'not set'!r}"
    return None


async def _show(url: str, key: str | None) -> None:
    from llamaswap_py.client.remote import AsyncRemote
    from llamaswap_py.tui.app import Top

    async with AsyncRemote(url, key=key) as remote:
        await Top(remote).run_async()
