"""Shows on stderr what an installation of an engine does: lines, and a bar while it downloads."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress", "say"]


def say(line: str) -> None:
    """Print a line about the work, beside what a command answers."""
    typer.echo(line, err=True)


@contextmanager
def progress() -> Iterator[Callable[[int, int | None], None]]:
    """Yield what takes the bytes done and in all; at a terminal it shows a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("download", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
