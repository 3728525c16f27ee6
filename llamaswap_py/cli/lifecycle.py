"""The commands about lswap itself: `demo`, `report`, `status`, `stop`, `uninstall`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamaswap_py.cli.asking import Key, Url
from llamaswap_py.cli.common import FAILED, Json

_OfModel = Annotated[str | None, typer.Argument(hidden=True)]
"""Other programs' commands of these names are about a model."""


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
    build: Annotated[
        bool, typer.Option("--build", help="Build a llama-server first if there is none.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Another file of tiny models that say a sentence.", show_default=False),
    ] = None,
) -> None:
    """Show two tiny models take turns in the memory for one. Needs a llama-server, and no model."""
    from llamaswap_py.demo.run import run

    raise typer.Exit(run(config, keep=keep, build=build))


def report(
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")] = Path(
        "lswap-report.md"
    ),
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration file (default: that of the running lswap, else as `up`).",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Gather what a bug report needs into a file, without secrets and prompts. Read it first.

    Versions, devices, the configuration; of a running lswap its state, decisions and logs.
    """
    from llamaswap_py.cli.report import run

    run(file, config=config, force=force, url=url, key=key)


def status(model: _OfModel = None, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """List the running lswaps: address, start time, loaded models; exits 3 if none runs."""
    from llamaswap_py.cli.status import run

    if model is not None:
        raise _about_lswap("status", f"`lswap ps {model}` tells of a model")
    run(url, key, as_json=as_json)


def stop(
    model: _OfModel = None,
    now: Annotated[
        bool, typer.Option("--now", help="Cut running requests instead of waiting for them.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Stop the lswap that runs here, and wait until it has ended. Running requests may finish.

    With --now it stops at once, like a second Ctrl-C.
    """
    from llamaswap_py.cli.stop import run

    if model is not None:
        raise _about_lswap("stop", f"`lswap unload {model}` takes a model out of memory")
    run(url, key, now=now, as_json=as_json)


def uninstall(
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Keep this: engines, cache, state, config, service, runtime or completion; may be"
            " repeated.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="USER/REPO",
            help="Remove this model of Hugging Face's shared cache, too; may be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove the listed parts.")] = False,
    as_json: Json = False,
) -> None:
    """List what lswap has left on this machine, with sizes; --yes removes it.

    Models are never removed unless --model names them. Refuses while an lswap runs.
    """
    from llamaswap_py.cli.uninstall import run

    if not run(keep=keep or (), models=models or (), yes=yes, as_json=as_json):
        raise typer.Exit(FAILED)


def _about_lswap(command: str, remedy: str) -> Exception:
    from llamaswap_py.errors import ConfigError

    return ConfigError(f"`lswap {command}` is about lswap itself", remedy=remedy)
