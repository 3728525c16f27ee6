"""What all commands share: the look of their help, and messages about a wrong command line.

Also the commands of the first hour: `up`, `init`, `check`. Their work is in other modules.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from llamaswap_py.llamacpp.router_mode import CONTEXT, MODEL_WORDS

FAILED: Final = 1

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AS_UP: Final = "The configuration file (YAML) or a folder of them; or models, as `up` takes them."
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir", help="A folder whose *.yaml files together are one configuration."
    ),
]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        help="Listen on HOST:PORT or unix:PATH, not where the file says; may be repeated."
    ),
]
ModelsDir = Annotated[
    list[Path] | None,
    typer.Option("--models-dir", help="Serve every GGUF file below this folder; may be repeated."),
]
Host = Annotated[
    str | None,
    typer.Option(
        help="Listen on this address: 127.0.0.1 for this machine, 0.0.0.0 for others too."
    ),
]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Listen on this port (default: 8080).")
]
KeysFile = Annotated[
    Path | None, typer.Option("--keys", help="The file of API keys (see `lswap key new`).")
]
RecordFile = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE",
        help="Write every event and decision to FILE, for `lswap simulate --replay`.",
    ),
]


def read_tokens(text: str | int) -> int:
    """Read a number of tokens: 16384, 16k."""
    from llamaswap_py.units import parse_tokens

    said = str(text)
    tokens = int(said) if said.isdecimal() else parse_tokens(said)
    if tokens is None:
        raise typer.BadParameter(f"{said!r} is not a number of tokens like 16384 or 16k")
    return tokens


ContextSize = Annotated[
    int | None,
    typer.Option(
        f"--{CONTEXT}",
        parser=read_tokens,
        metavar="N",
        help="The context of each model (16384, 16k; default: chosen so that it fits).",
    ),
]


def up(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG|MODEL]...",
            help="Either a configuration (a YAML file, or a folder of YAML files), or models: GGUF "
            "files, folders of them, or Hugging Face repositories (user/repo:QUANT).",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    models_dir: ModelsDir = None,
    name: Annotated[
        str | None, typer.Option(help="A name for this lswap, needed to run a second one.")
    ] = None,
    listen: Listen = None,
    host: Host = None,
    port: Port = None,
    keys: KeysFile = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated",
            help="Serve other machines without a key. Only for a network that you trust.",
        ),
    ] = False,
    record: RecordFile = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every request and debug messages.")
    ] = False,
    config: Annotated[list[str] | None, typer.Option("--config", "-c", hidden=True)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(*MODEL_WORDS, hidden=True),
    ] = None,
    ctx_size: ContextSize = None,
) -> None:
    """Serve the models of CONFIG on one port, until Ctrl-C.

    The first Ctrl-C lets running requests finish, a second one stops at once. Without CONFIG or
    MODEL, lswap uses ./lswap.yaml or ~/.config/lswap/config.yaml. If there is neither, it serves
    the GGUF files of ~/models and of the folders where llama.cpp and LM Studio keep theirs.
    """
    from llamaswap_py.cli.arguments import options_said, origin_of
    from llamaswap_py.cli.up import run

    files, context = options_said(config or (), ctx_size)
    named = [*(what or ()), *files, *(model or ())]
    origin = origin_of(
        named,
        config_dir,
        models_dir or (),
        keys=keys,
        allow_unauthenticated=allow_unauthenticated,
        context=context,
    )
    run(
        origin,
        name=name,
        listen=tuple(listen or ()),
        host=host,
        port=port,
        record=record,
        verbose=verbose,
    )


def init(
    path: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")] = Path(
        "lswap.yaml"
    ),
    models_dir: ModelsDir = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented configuration for this machine's models."""
    from llamaswap_py.cli.init import run

    run(path, tuple(models_dir or ()), force=force)


def check(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG|MODEL]...", help=AS_UP, show_default=False),
    ] = None,
    config_dir: ConfigDir = None,
    models_dir: ModelsDir = None,
    as_json: Json = False,
) -> None:
    """List all mistakes in CONFIG; exit with 1 if there are any."""
    from llamaswap_py.cli.arguments import origin_of
    from llamaswap_py.cli.check import run

    if not run(origin_of(what or (), config_dir, models_dir or ()), as_json=as_json):
        raise typer.Exit(FAILED)


USAGE_ERROR: Final[type[Exception]] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
"""What typer raises for a wrong command line. Newer typers bring their own copy of click."""

LOOKS: Final[dict[str, Any]] = {
    "rich_markup_mode": None,  # plain help: rich would cost 80 ms of CPU
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""The options of every typer.Typer here, so that all help looks the same."""


class Commands(TyperGroup):
    """A group of commands that accepts other words for them, and gives advice for a wrong word."""

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
    """Return a typer.Typer for a group of commands like `lswap key …`."""
    return typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help=text, **LOOKS)


def tell_usage(error: Any) -> int:
    """Print on stderr what is wrong with a command line; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    from llamaswap_py.cli.advice import option_advice

    command = error.ctx.command_path if error.ctx is not None else "lswap"
    said = error.format_message().rstrip(".").replace("\n", " ")
    option = getattr(error, "option_name", None)  # of a NoSuchOption error
    near = bool(getattr(error, "possibilities", None))
    told = option_advice(command, option, near=near) if isinstance(option, str) else None
    remedy = told or f"see `{command} --help`"
    print(f"lswap: {said[:1].lower()}{said[1:]} - {remedy}", file=sys.stderr)
    return int(error.exit_code)
