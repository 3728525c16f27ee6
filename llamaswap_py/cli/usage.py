"""What all commands have in common: their help, and how a wrong command line is answered."""

from __future__ import annotations

import sys
from typing import Any, Final

import typer
from typer.core import TyperGroup

USAGE_ERROR: Final[type[Exception]] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
"""What typer raises for a command line it cannot read: click's own, which it may bring along."""

LOOKS: Final[dict[str, Any]] = {
    "rich_markup_mode": None,  # plain help: drawing it with rich costs 80 ms of CPU
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""The options of every typer.Typer here: all help looks the same."""


class Commands(TyperGroup):
    """A group of commands that knows other words for them, and answers a wrong one with advice."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        from llamaswap_py.cli.advice import advice, same_word
        from llamaswap_py.errors import ConfigError

        path = ctx.command_path
        word = same_word(path, args[0])
        try:
            return super().resolve_command(ctx, [word, *args[1:]])
        except USAGE_ERROR:
            known = [name for name, one in self.commands.items() if not one.hidden]
            remedy = advice(path, word, known)
            if remedy is None:
                raise
            raise ConfigError(f"there is no command `{path} {word}`", remedy=remedy) from None


def command_group(text: str) -> typer.Typer:
    """Return what the commands of a group, like `lswap key …`, are added to."""
    return typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help=text, **LOOKS)


def tell_usage(error: Any) -> int:
    """Say on stderr what is wrong with a command line; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    from llamaswap_py.cli.advice import option_advice

    command = error.ctx.command_path if error.ctx is not None else "lswap"
    said = error.format_message().rstrip(".").replace("\n", " ")
    option = getattr(error, "option_name", None)  # of an option that does not exist
    near = bool(getattr(error, "possibilities", None))
    told = option_advice(command, option, near=near) if isinstance(option, str) else None
    remedy = told or f"see `{command} --help`"
    print(f"lswap: {said[:1].lower()}{said[1:]} - {remedy}", file=sys.stderr)
    return int(error.exit_code)
