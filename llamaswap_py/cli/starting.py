"""The commands a first hour begins with: `up`, `init`, `check`. Their work is in other modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

FAILED: Final = 1

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaybeConfigPath = Annotated[
    Path | None,
    typer.Argument(help="The configuration file (YAML), or a folder of them.", show_default=False),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", help="A folder whose *.yaml files are read as one, by name."),
]
ModelsDir = Annotated[
    list[Path] | None,
    typer.Option("--models-dir", help="Serve every GGUF file below it; may be repeated."),
]


def up(
    config: MaybeConfigPath = None,
    config_dir: ConfigDir = None,
    models_dir: ModelsDir = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of this supervisor's runtime folder (default: from the file's path)."
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT or unix:PATH, instead of the file's; may be repeated."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every request, and debug lines.")
    ] = False,
) -> None:
    """Serve the models of CONFIG until Ctrl-C: the first one drains, a second stops at once.

    Without CONFIG: those of ./lswap.yaml or ~/.config/lswap/config.yaml, else every GGUF file in
    the usual places.
    """
    from llamaswap_py.cli.origins import choose_origin
    from llamaswap_py.cli.up import run

    origin = choose_origin(config, config_dir, tuple(models_dir or ()))
    run(origin, name=name, listen=tuple(listen or ()), verbose=verbose)


def init(
    path: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")] = Path(
        "lswap.yaml"
    ),
    models_dir: ModelsDir = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented configuration from what is on this machine."""
    from llamaswap_py.cli.init import run

    run(path, tuple(models_dir or ()), force=force)


def check(
    config: MaybeConfigPath = None,
    config_dir: ConfigDir = None,
    models_dir: ModelsDir = None,
    as_json: Json = False,
) -> None:
    """Find everything that is wrong with CONFIG; exits 1 if anything is."""
    from llamaswap_py.cli.check import run
    from llamaswap_py.cli.origins import choose_origin

    origin = choose_origin(config, config_dir, tuple(models_dir or ()))
    if not run(origin, as_json=as_json):
        raise typer.Exit(FAILED)
