"""The commands of `lswap`, and how they report failures.

Exit codes: 0 done · 1 the command failed · 2 wrong usage or configuration ·
3 no running lswap answers.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Final

import typer

from llamaswap_py.cli import common, library, server_commands
from llamaswap_py.cli.asking import Key, MaybeModel, Model, Url, print_json, remote
from llamaswap_py.cli.common import AS_UP, FAILED, LOOKS, USAGE_ERROR, Commands, Json, tell_usage
from llamaswap_py.cli.completion import add_group, model_names
from llamaswap_py.errors import ConfigError, LswapError
from llamaswap_py.redaction import without_user
from llamaswap_py.units import is_utf8, showable

BAD_CONFIG: Final = 2
UNREACHABLE: Final = 3

app = typer.Typer(
    name="lswap",
    help="Serve many local language models on one port, and swap them in memory.",
    epilog=(
        "Exit codes: 0 done, 1 the command failed, 2 wrong usage or configuration,"
        " 3 no running lswap answers."
    ),
    no_args_is_help=True,
    cls=Commands,
    **LOOKS,
)


def main() -> None:
    """Run `lswap`. Report an expected failure as one line on stderr and an exit code."""
    try:
        _check_arguments(sys.argv[1:])
        code = app(prog_name="lswap", standalone_mode=False)
    except LswapError as error:
        print(f"lswap: {without_user(str(error))}", file=sys.stderr)
        sys.exit(exit_code(error))
    except USAGE_ERROR as error:
        sys.exit(tell_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _check_arguments(words: list[str]) -> None:
    """Raise ConfigError for a word that is not UTF-8; words after `--` are for another program."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an odd name must not raise
    own = words[: words.index("--")] if "--" in words else words
    for word in own:
        if not is_utf8(word):
            remedy = "rename the file or folder, or name a link to it"
            raise ConfigError(f"{showable(word)} is not UTF-8", remedy=remedy)


def exit_code(error: LswapError) -> int:
    """Return the exit code that an error means."""
    if isinstance(error, ConfigError):
        return BAD_CONFIG
    # Compared by name: importing the HTTP client would slow down commands that do not need it.
    return UNREACHABLE if type(error).__name__ == "UnreachableError" else FAILED


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version, the commit and the llama-server, and exit.",
        ),
    ] = False,
) -> None:
    """Run many local language models on too little memory: one port, llama-server children."""


for _command in (
    common.up,
    common.init,
    common.check,
    server_commands.status,
    server_commands.stop,
):
    app.command()(_command)


@app.command()
def estimate(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [MODEL]", help=AS_UP, show_default=False),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore declared and measured memory; estimate again.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the contexts and layers that were tried.")
    ] = False,
    write: Annotated[
        bool,
        typer.Option("--write", help="If MODEL does not fit, write into CONFIG what makes it fit."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --write: do not ask before the change.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show each model's memory, and which models fit together.

    With MODEL, show only that model of CONFIG.
    """
    from llamaswap_py.cli.arguments import origin_and_model
    from llamaswap_py.cli.estimate import run

    origin, model = origin_and_model(what or ())
    if write:
        from llamaswap_py.cli import mend

        if not mend.run(origin, model, yes=yes):
            raise typer.Exit(FAILED)
        return
    if not run(origin, model, fresh=fresh, as_json=as_json, explain=explain):
        raise typer.Exit(FAILED)


@app.command()
def simulate(
    config: Annotated[
        Path | None, typer.Option("--config", help="The configuration file (YAML).")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="FILE",
            help="Instead of --config: a file with sizes and load times (docs/scheduling.md).",
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Requests as JSON lines (docs/scheduling.md).")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="lswap, fifo, router, collate, keep-alive, or all (the default); may be repeated.",
        ),
    ] = None,
    read_rate: Annotated[
        str, typer.Option(help="Assume that models load at so many bytes per second.")
    ] = "2GiB",
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay", metavar="FILE", help="A file that `lswap up --record FILE` wrote."
        ),
    ] = None,
    first: Annotated[
        int, typer.Option("--from", metavar="LINE", help="Show the replay from this line on.")
    ] = 1,
    last: Annotated[
        int | None, typer.Option("--until", metavar="LINE", help="Replay up to this line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try a configuration on a trace, or replay a recorded run.

    A trace is a list of requests. It is played with lswap's policy and those of other programs.
    --replay runs the scheduler on a recorded run, shows its decisions, and checks that they match
    the recorded ones.
    """
    from llamaswap_py.cli.simulate import run_either

    policies = () if policy == ["all"] else tuple(policy or ())
    span = (first, last)
    if not run_either(config, models, trace, policies, read_rate, replay, span, as_json=as_json):
        raise typer.Exit(FAILED)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from llamaswap_py.cli.schema import run

    run()


@app.command()
def ps(
    model: MaybeModel = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="Show unloaded models too.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show memory, loaded models and those that requests wait for; or only MODEL."""
    from llamaswap_py.cli.show import only_model, print_ps
    from llamaswap_py.client import calls

    with remote(url, key) as lswap:
        snapshot = lswap.ask(calls.state())
    if model is not None:
        snapshot, every = only_model(snapshot, model), True
    if as_json:
        print_json(snapshot)
    else:
        print_ps(snapshot, every=every)


@app.command()
def models(
    model: MaybeModel = None, as_json: Json = False, url: Url = None, key: Key = None
) -> None:
    """List the models of a running lswap, or only MODEL."""
    from llamaswap_py.cli.show import only_model, print_models
    from llamaswap_py.client import calls

    with remote(url, key) as lswap:
        snapshot = lswap.ask(calls.state())
    found = snapshot if model is None else only_model(snapshot, model)
    if as_json:
        print_json(found.models)
    else:
        print_models(found)


@app.command()
def load(
    model: Model,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready.")] = True,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Load MODEL, and unload others if it needs their memory."""
    from llamaswap_py.cli.load_progress import load_with_progress

    with remote(url, key) as lswap:
        report = load_with_progress(lswap, model, wait=wait, quiet=as_json)
    if as_json:
        print_json(report)
    elif wait:
        from llamaswap_py.units import format_duration

        print(f"{report.model} is ready ({format_duration(report.seconds)})")
    else:
        print(f"{report.model} will be loaded; `lswap ps` shows the progress")


@app.command()
def unload(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Names or aliases of models.",
            autocompletion=model_names,
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="Unload all loaded models.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Cut its requests instead of waiting for them.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is unloaded.")] = True,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Unload models once their requests have ended."""
    from llamaswap_py.cli.load_progress import unload_each

    if not models and not every:
        remedy = "name a model, or use --all; `lswap ps` lists the loaded ones"
        raise ConfigError("no model was named", remedy=remedy)
    with remote(url, key) as lswap:
        unload_each(lswap, None if every else models or (), force, wait, as_json)


@app.command()
def reload(as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Make a running lswap read its configuration again.

    If the file has a mistake, lswap keeps the old configuration and prints the mistake.
    """
    from llamaswap_py.client import calls

    with remote(url, key) as lswap:
        report = lswap.ask(calls.reload())
    if as_json:
        print_json(report)
        return
    for word, names in (
        ("added", report.added),
        ("removed", report.removed),
        ("changed", report.changed),
    ):
        if names:
            print(f"{word}: {', '.join(names)}")
    parts = []
    if keys := report.needs_restart:
        verb = "takes" if len(keys) == 1 else "take"
        parts.append(f"{', '.join(keys)}: {verb} effect after a restart.")
    if not (report.added or report.removed or report.changed):
        parts.append("Models: no change.")
    if parts:
        print(" ".join(parts))


@app.command()
def pin(model: Model, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Keep MODEL loaded until `unpin` or a restart.

    lswap then does not unload it to make room for another model. It names the models that can
    never be loaded beside it.
    """
    from llamaswap_py.client import calls

    with remote(url, key) as lswap:
        report = lswap.ask(calls.pin(model, pinned=True))
    if as_json:
        print_json({"model": model, "pinned": True, "impossible": report.impossible})
    else:
        print(f"{model} is pinned")
        if report.impossible:
            names = ", ".join(report.impossible)
            print(f"warning: beside it these can never be loaded: {names} - `lswap unpin {model}`")


@app.command()
def unpin(model: Model, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Allow lswap to unload MODEL again (undo `pin`)."""
    from llamaswap_py.client import calls

    with remote(url, key) as lswap:
        lswap.ask(calls.pin(model, pinned=False))
    if as_json:
        print_json({"model": model, "pinned": False})
    else:
        print(f"{model} is unpinned")


@app.command()
def logs(
    model: MaybeModel = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines.")
    ] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Lines to print first.")] = 100,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Print MODEL's output; without MODEL, lswap's own log.

    The output is that of its llama-server.
    """
    from llamaswap_py.client import calls

    silent = tail > 0
    about = {} if model is None else {"model": model}
    asked = calls.logs(model, tail=tail, follow=follow)
    with remote(url, key) as lswap, suppress(KeyboardInterrupt), lswap.stream(asked) as lines:
        for line in lines:
            silent = False
            if as_json:
                print_json({**about, "line": line})
            else:
                print(line, flush=follow)
    if silent and model is not None:
        said = f"{model} has no log: it was never started - `lswap why {model}` says more"
        print(f"lswap: {said}", file=sys.stderr)


@app.command()
def why(
    model: Model,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Decisions to show.")] = 20,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Explain why MODEL is loaded or not, by the last decisions."""
    from llamaswap_py.cli.show import find_model, print_why
    from llamaswap_py.client import calls

    with remote(url, key) as lswap:
        snapshot = lswap.ask(calls.state())
        found = find_model(snapshot, model)
        asked = calls.decisions(found.id if found else model, limit)
        decisions = lswap.ask(asked).decisions  # an error where the model is unknown
    if as_json or found is None:
        print_json(decisions)
    else:
        print_why(found, decisions, snapshot.now)


@app.command()
def reserve(
    size: Annotated[str, typer.Argument(help="Memory to reserve, like 14GiB.")],
    command: Annotated[list[str], typer.Argument(help="The program to run, after --.")],
    device: Annotated[
        str | None,
        typer.Option("--device", help="The device to reserve on (default: the only card)."),
    ] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Reserve memory for another program while it runs.

    lswap unloads models to make room, runs COMMAND, and then releases the memory.
    """
    from llamaswap_py.cli.reserve import run

    with remote(url, key) as lswap:
        code = run(lswap, size, device, command)
    raise typer.Exit(code)


app.command()(library.pull)
app.command()(server_commands.uninstall)
app.command()(server_commands.demo)
app.command()(server_commands.report)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the versions of lswap and its llama-server."""
    from llamaswap_py.cli.version import print_version

    print_version(as_json=as_json)


_group = partial(add_group, app)
_group("top", "top", "Open a dashboard of a running lswap in the terminal.", bare=())
_group("engine", "engine", "Build, install or choose a llama-server; check it.")
_group("key", "key", "Make, list and revoke API keys.")
_group("service", "service", "Run lswap as a systemd service: install, status, uninstall.")
_group("completion", "completion", "Print a script that completes commands and model names.")
_group("rm", "rm", "Remove a model from the file; --files also deletes its files.")
_group("import", "importing", "Write a configuration from another program's settings.")
