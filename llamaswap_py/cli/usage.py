"""How a wrong command line is answered: one line, and where the help is."""

from __future__ import annotations

import sys
from typing import Any, Final

import typer

USAGE_ERROR: Final[type[Exception]] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
"""What typer raises for a command line it cannot read: click's own, which it may bring along."""


def tell_usage(error: Any) -> int:
    """Say on stderr what is wrong with a command line; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    command = error.ctx.command_path if error.ctx is not None else "lswap"
    said = error.format_message().rstrip(".").replace("\n", " ")
    print(f"lswap: {said[:1].lower()}{said[1:]} - see `{command} --help`", file=sys.stderr)
    return int(error.exit_code)
