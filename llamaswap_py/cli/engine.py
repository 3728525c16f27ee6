"""`lswap engine …`: find, build, choose, install and examine llama-server binaries."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamaswap_py.cli.common import command_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamaswap_py.llamacpp.binaries import Broken
    from llamaswap_py.llamacpp.doctor import Check
    from llamaswap_py.llamacpp.probe import Engine

__all__ = ["app"]

# Heavy modules are imported inside the commands: `lswap --help` must be quick.
app = command_group("Find, build and check llama-server binaries.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
        bool, typer.Option("--rpc", help="Also build ggml-rpc-server, and use what it lends.")
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
        typer.echo("no llama-server found - run `lswap engine build`")
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
    location: Annotated[str, typer.Argument(help="A release archive: a file or URL.")],
    sha256: Annotated[str, typer.Option(help="SHA-256 of the archive.")],
    name: Annotated[str | None, typer.Option(help="Install under this name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Install a release archive of llama.cpp.

    It is a .tar.gz or .zip; lswap checks its SHA-256 first.
    """
    from llamaswap_py.llamacpp.install import install_archive

    with _progress() as on_progress:
        engine = install_archive(location, sha256, name=name, on_progress=on_progress)
    if as_json:
        _print_json(_record(engine))
    else:
        typer.echo(f"installed {engine.label} ({engine.path})")


@contextmanager
def _progress() -> Iterator[Callable[[int, int | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("download", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


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
            f"\n{'ready' if report.usable else 'no usable engine: run `lswap engine build`'}"
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
