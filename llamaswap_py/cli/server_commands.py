"""The commands about lswap itself: `demo`, `report`, `status`, `stop`, `uninstall`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamaswap_py.cli.asking import Key, Url
from llamaswap_py.cli.common import FAILED, Json

_OfModel = Annotated[str | None, typer.Argument(hidden=True)]
"""Other programs have commands of these names that take a model; ours do not."""


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
    build: Annotated[
        bool,
        typer.Option(
            "--build",
            help="If there is no llama-server, download a release of llama.cpp, or build it.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Use another configuration; each model has `metadata: {says: SENTENCE}`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show two tiny models that share the memory for one.

    It needs a llama-server, and no model of yours.
    """
    from llamaswap_py.cli.offer import offer_engine
    from llamaswap_py.demo.run import run

    if not build:
        offer_engine()
    raise typer.Exit(run(config, keep=keep, build=build))


def report(
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")] = Path(
        "lswap-report.md"
    ),
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration file (default: the running lswap's, else as for `up`).",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Write a bug report to a file, without secrets and prompts.

    It has versions, devices and the configuration. If lswap runs, also its state, decisions and
    logs. Read the file before you send it.
    """
    from llamaswap_py.cli.report import run

    run(file, config=config, force=force, url=url, key=key)


def status(model: _OfModel = None, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """List the running lswaps; exit with 3 if there are none.

    Each with its address, start time and loaded models.
    """
    from llamaswap_py.cli.status import run

    if model is not None:
        raise _about_lswap("status", f"`lswap ps {model}` shows a model")
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
    """Stop the running lswap, and wait until it has ended.

    Running requests may finish. --now stops at once, like a second Ctrl-C.
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
            help="Keep this part: engines, cache, state, config, service, runtime or completion;"
            " may be repeated.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="USER/REPO",
            help="Also remove this model from Hugging Face's shared cache; may be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove the listed parts.")] = False,
    as_json: Json = False,
) -> None:
    """List lswap's files on this machine; --yes removes them.

    A model is removed only if --model names it. No file is removed while an lswap runs.
    """
    from llamaswap_py.cli.uninstall import run

    if not run(keep=keep or (), models=models or (), yes=yes, as_json=as_json):
        raise typer.Exit(FAILED)


def _about_lswap(command: str, remedy: str) -> Exception:
    from llamaswap_py.errors import ConfigError

    return ConfigError(f"`lswap {command}` is about lswap itself", remedy=remedy)
