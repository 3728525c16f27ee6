"""`lswap completion …`: completion for shells, with the names of the running lswap's models.

Errors while a word is completed are dropped, because a shell cannot show them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import typer

from llamaswap_py.cli.common import command_group

__all__ = ["add_group", "app", "model_names"]

app = command_group("Print a script that completes commands and model names in a shell.")
_PATIENCE: Final = 0.5
"""Seconds that a server may take to name its models, while a user waits at a prompt."""


@app.command()
def bash() -> None:
    """Print the script:  lswap completion bash >~/.local/share/bash-completion/completions/lswap"""
    _print("bash")


@app.command()
def zsh() -> None:
    """Print the script:  lswap completion zsh >~/.zfunc/_lswap"""
    _print("zsh")


@app.command()
def fish() -> None:
    """Print the script:  lswap completion fish >~/.config/fish/completions/lswap.fish"""
    _print("fish")


def _print(shell: str) -> None:
    from typer._completion_shared import get_completion_script

    print(get_completion_script(prog_name="lswap", complete_var="_LSWAP_COMPLETE", shell=shell))


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the running server's models that begin with a text; none if it does not answer."""
    url = ctx.params.get("url") or os.environ.get("LSWAP_URL")
    key = ctx.params.get("key") or os.environ.get("LSWAP_KEY")
    with suppress(Exception):
        from llamaswap_py.cli.servers import find_url
        from llamaswap_py.client import calls
        from llamaswap_py.client.remote import Remote

        with Remote(find_url(url), key=key, patience=_PATIENCE) as remote:
            snapshot = remote.ask(calls.state())
            names = [name for one in snapshot.models for name in (one.id, *one.other_names)]
            names += [one.name for one in snapshot.aliases]
        return [name for name in names if name.startswith(incomplete)]
    return []


def add_group(
    app: typer.Typer, name: str, module: str, text: str, bare: tuple[str, ...] = ("--help",)
) -> None:
    """Add a command whose module is imported when it runs; `bare` are its default words."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        with suppress(Exception):
            return _words_of(module, [*(ctx.params.get("words") or ())], incomplete)
        return []

    @app.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def run(
        # An annotation is a string here, in which `complete` cannot be found.
        words: list[str] | None = typer.Argument(None, hidden=True, autocompletion=complete),  # noqa: B008
    ) -> None:
        code = _load(module)(
            args=words or list(bare), prog_name=f"lswap {name}", standalone_mode=False
        )
        raise typer.Exit(code if isinstance(code, int) else 0)


def _words_of(module: str, given: list[str], incomplete: str) -> list[str]:
    """Return the completions that a group's own app offers for a word."""
    from typer._completion_classes import BashComplete
    from typer.main import get_command

    shell = BashComplete(get_command(_load(module)), {}, "lswap", "_LSWAP_COMPLETE")
    return [str(item.value) for item in shell.get_completions(given, incomplete)]


def _load(module: str) -> typer.Typer:
    from importlib import import_module

    group: typer.Typer = import_module(f"llamaswap_py.cli.{module}").app
    return group
