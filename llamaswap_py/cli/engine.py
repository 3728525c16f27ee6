"""`lswap engine …`: find, build, choose, install and examine llama-server binaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamaswap_py.cli.common import command_group

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.binaries import Broken
    from llamaswap_py.llamacpp.doctor import Check
    from llamaswap_py.llamacpp.probe import Engine

__all__ = ["app"]

# Heavy modules are imported inside the commands: `lswap --help` must be quick.
app = command_group("Install, build, choose and check llama-server binaries.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Backend = Annotated[
    str, typer.Option(help="cpu, vulkan, rocm, metal, cuda or auto: what this machine can use.")
]


@app.command()
def build(
    backend: Annotated[str, typer.Option(help="cpu, cuda, rocm, vulkan, metal or auto.")] = "auto",
    ref: Annotated[str | None, typer.Option(help="llama.cpp release tag, like b11434.")] = None,
    source: Annotated[str, typer.Option(help="git, pypi or a folder.")] = "git",
    mirror: Annotated[
        str | None, typer.Option(help="Fetch the source from this git address or folder first.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Parallel compile jobs.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Install into this folder.")] = None,
    targets: Annotated[str | None, typer.Option(help="CMake targets to build, in quotes.")] = None,
    vulkan_headers: Annotated[
        str | None, typer.Option(help="A folder with the headers that a Vulkan build needs.")
    ] = None,
    rpc: Annotated[
        bool, typer.Option("--rpc", help="Also build ggml-rpc-server, and support its devices.")
    ] = False,
    portable: Annotated[
        bool, typer.Option("--portable", help="Build a binary that also runs on other CPUs.")
    ] = False,
    ui: Annotated[bool, typer.Option("--ui", help="Build the web UI too (needs npm).")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be done.")
    ] = False,
) -> None:
    """Build llama-server from source and install it."""
    from llamaswap_py.llamacpp.install import build_engine

    values: dict[str, object] = {"backend": backend, "ref": ref, "source": source, "mirror": mirror}
    values |= {"jobs": jobs, "prefix": prefix}
    values |= {"targets": targets, "vulkan-headers": vulkan_headers}
    switches = {"--portable": portable, "--ui": ui, "--rpc": rpc, "--dry-run": dry_run}
    options = [part for k, v in values.items() if v is not None for part in (f"--{k}", str(v))]
    build_engine([*options, *(switch for switch, on in switches.items() if on)])


@app.command("list")
def list_engines(as_json: AsJson = False) -> None:
    """List the engines on this machine.

    `engine: auto` takes the first that works.
    """
    from llamaswap_py.llamacpp.binaries import find_engines

    found = find_engines()
    if as_json:
        _print_json([_record(entry) for entry in found])
        return
    if not found:
        typer.echo("no llama-server found - run `lswap engine install` or `lswap engine build`")
        return
    for entry in found:
        record = _record(entry)
        build = f"b{record['build']}" if record.get("build") else "-"
        typer.echo(f"{build:<8} {record.get('backend', '-'):<8} {entry.path}  ({entry.source})")
        if "error" in record:
            typer.echo(f"{'':<18}broken: {record['error']}")


def _record(entry: Engine | Broken) -> dict[str, Any]:
    from dataclasses import asdict

    from llamaswap_py.llamacpp.binaries import Broken

    record: dict[str, Any] = {"path": str(entry.path), "source": entry.source}
    if isinstance(entry, Broken):
        return record | {"error": entry.error.message, "remedy": entry.error.remedy}
    return record | {
        "build": entry.build,
        "backend": entry.backend,
        "version": entry.version,
        "features": asdict(entry.features),
        "fit_params": str(entry.fit_params) if entry.fit_params else None,
    }


@app.command()
def use(
    engine: Annotated[str, typer.Argument(help="A name from the list, or a path.")],
    as_json: AsJson = False,
) -> None:
    """Choose the engine that `engine: auto` takes first."""
    from llamaswap_py.llamacpp.binaries import choose_engine

    chosen = choose_engine(engine)
    if as_json:
        _print_json(_record(chosen))
    else:
        typer.echo(f"engine: auto now means {chosen.label} ({chosen.path})")


@app.command()
def install(
    location: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARCHIVE]",
            help="A .tar.gz or .zip with a llama-server: a file or URL. Without it, lswap "
            "downloads the one of llama.cpp's release that fits this machine.",
            show_default=False,
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(help="SHA-256 of the archive; needed with ARCHIVE.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Install under this name.", show_default=False)
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(
            help="Release of llama.cpp, like b11434 (default: the one lswap is tested with).",
            show_default=False,
        ),
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Take the newest release.")] = False,
    backend: Backend = "auto",
    as_json: AsJson = False,
) -> None:
    """Install a llama-server without compiling: a release of llama.cpp.

    lswap checks the SHA-256 that the release names, and that the llama-server starts here.
    Engines that are installed already stay; `lswap engine use` chooses between them.
    """
    from llamaswap_py.cli.download_progress import progress, say

    _check_choice(location, sha256, ref, latest, backend)
    with progress() as on_progress:
        if location is not None and sha256 is not None:
            from llamaswap_py.llamacpp.install import install_archive

            engine = install_archive(location, sha256, name=name, on_progress=on_progress)
        else:
            from llamaswap_py.llamacpp.releases import install_release

            engine = install_release(
                ref,
                newest=latest,
                backend=backend,
                sha256=sha256,
                name=name,
                say=say,
                on_progress=on_progress,
            )
    _tell_installed(engine, as_json=as_json)


def _check_choice(
    location: str | None, sha256: str | None, ref: str | None, latest: bool, backend: str
) -> None:
    from llamaswap_py.errors import ConfigError

    if location is not None:
        if sha256 is None:
            raise ConfigError(
                "an ARCHIVE needs its --sha256", remedy="the page of the release lists it"
            )
        if ref is not None or latest or backend != "auto":
            raise ConfigError(
                "--ref, --latest and --backend choose a release, not an ARCHIVE",
                remedy="leave them out, or the ARCHIVE",
            )
    if ref is not None and latest:
        raise ConfigError("--ref and --latest name two releases", remedy="leave one out")


@app.command()
def update(
    backend: Annotated[
        str, typer.Option(help="cpu, vulkan, rocm, metal, cuda or auto: as the engine in use.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Install the newest release of llama.cpp, if it is newer than the engine in use.

    The engine in use stays installed, and the last line says how to go back to it.
    """
    from llamaswap_py.cli.download_progress import progress, say
    from llamaswap_py.errors import EngineError
    from llamaswap_py.llamacpp.binaries import locate_engine
    from llamaswap_py.llamacpp.releases import update_engine

    try:
        before = locate_engine()
    except EngineError:
        before = None
    with progress() as on_progress:
        engine = update_engine(before, backend=backend, say=say, on_progress=on_progress)
    if engine is not None:
        _tell_installed(engine, as_json=as_json)
        if before is not None and not as_json:
            typer.echo(f"to go back: `lswap engine use {_name_of(before)}`")
    elif before is not None and as_json:
        _print_json(_record(before))
    elif before is not None:
        typer.echo(f"{before.label} is as new as llama.cpp's newest release for this machine")


def _tell_installed(engine: Engine, *, as_json: bool) -> None:
    """Print what was installed, and whether `engine: auto` takes it."""
    from llamaswap_py.errors import EngineError
    from llamaswap_py.llamacpp.binaries import locate_engine

    if as_json:
        _print_json(_record(engine))
        return
    typer.echo(f"installed {engine.label} ({engine.path})")
    try:
        taken = locate_engine()
    except EngineError as error:  # LSWAP_LLAMA_SERVER names one that does not work
        typer.echo(f"lswap does not use it: {error}")
        return
    if taken.path.resolve() == engine.path.resolve():
        typer.echo("lswap uses it from its next start on")
    else:
        typer.echo(
            f"lswap still uses {taken.label} ({taken.source}); "
            f"`lswap engine use {_name_of(engine)}` chooses the new one"
        )


def _name_of(engine: Engine) -> str:
    """Return what `lswap engine use` calls an engine: an installation's name, else the path."""
    from llamaswap_py.llamacpp.paths import engines_folder

    folder = engines_folder()
    inside = engine.path.is_relative_to(folder)
    return engine.path.relative_to(folder).parts[0] if inside else str(engine.path)


@app.command()
def compare(
    old: Annotated[str, typer.Argument(help="An engine: a name from the list, or a path.")],
    new: Annotated[str, typer.Argument(help="The engine to compare with it.")],
    as_json: AsJson = False,
) -> None:
    """Say what another build of llama.cpp changes: options, routes, behaviour, log lines.

    Both engines run a few times, with a tiny model and as lswap would start them. An option that
    the new engine lacks is shown with the one that lswap writes instead, if there is one. Log lines
    are compared without times, numbers and paths. A line that lswap reads and that is gone is
    marked with `!`.
    """
    from llamaswap_py.cli.compare import as_record, compare_engines, print_comparison
    from llamaswap_py.llamacpp.binaries import named_engine

    found = compare_engines(named_engine(old), named_engine(new))
    if as_json:
        _print_json(as_record(found))
    else:
        print_comparison(found)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine for engines, and say what is missing.

    The exit code is 0 if there is a usable engine.
    """
    from dataclasses import asdict, replace

    from llamaswap_py.children.containment import examine_containment
    from llamaswap_py.llamacpp.doctor import examine

    report = examine()
    report = replace(report, checks=(*report.checks, examine_containment()))
    if as_json:
        _print_json(asdict(report))
    else:
        print_checks(report.checks)
        typer.echo(
            "\nready"
            if report.usable
            else "\nno usable engine: run `lswap engine install` or `lswap engine build`"
        )
    raise typer.Exit(0 if report.usable else 1)


def print_checks(checks: tuple[Check, ...]) -> None:
    """Print the checks, group by group."""
    marks = {"ok": ("ok", "green"), "absent": ("--", "yellow"), "problem": ("!!", "red")}
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            typer.secho(group, bold=True)
        mark, color = marks[check.state]
        typer.echo(f"  {typer.style(mark, fg=color)} {check.name}: {check.detail}")
        if check.remedy:
            typer.echo(f"     → {check.remedy}")


def _print_json(value: object) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
