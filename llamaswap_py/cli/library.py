"""The command `pull`, for models of Hugging Face. Its work is in pull.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from llamaswap_py.cli.common import Json, read_tokens

CTX: Final = 16384
"""The context down to which models stay wholly on a device (estimate/fitting.py, COMFORTABLE)."""


def _tokens(text: str | int) -> int:
    """Read a number of tokens that is not 0."""
    if not (tokens := read_tokens(text)):
        raise typer.BadParameter(f"{text!r} is not a number of tokens like 16384 or 16k")
    return tokens


def pull(
    reference: Annotated[str, typer.Argument(help="user/repo or user/repo:QUANT.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Add the model to this file, comments and all.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in that file.")] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Only list the quantisations, and which fit.")
    ] = False,
    ctx: Annotated[
        int,
        typer.Option(
            parser=_tokens,
            metavar="N",
            help="Choose one that fits with this many tokens of context (16384, 16k).",
        ),
    ] = CTX,
    as_json: Json = False,
) -> None:
    """Download a model from Hugging Face.

    Without a QUANT, lswap takes the largest that fits this machine.
    """
    from llamaswap_py.cli.pull import run

    run(reference, config=config, name=name, show=show, ctx=ctx, as_json=as_json)
