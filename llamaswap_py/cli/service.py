"""`lswap service …`: runs lswap as a systemd service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from llamaswap_py.cli.common import command_group
from llamaswap_py.storage.regular_files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pwd import struct_passwd

    from llamaswap_py.config.sections import Config
    from llamaswap_py.errors import LswapError
    from llamaswap_py.server import Unit

__all__ = ["app"]

app = command_group("Run lswap as a systemd service.")

OfUser = Annotated[
    bool, typer.Option("--user", help="Use a service of your own user, without root.")
]
Name = Annotated[str, typer.Option("--name", help="Name of the unit, to install several.")]
_SYSTEM: Final = Path("/etc/systemd/system")
MARK: Final = "# Written by `lswap service install`"
"""The first line of units that lswap wrote (server/systemd_unit.py)."""
_GPU_GROUPS: Final = ("video", "render")
_CARRIED: Final = (
    *("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "LSWAP_LLAMA_SERVER"),
)
"""Variables of the shell that the unit copies, so that the service finds the same folders. Secrets
are not among them, because every user may read a unit."""


@app.command()
def install(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="The configuration file (default: the one `lswap up` takes).", show_default=False
        ),
    ] = None,
    user: OfUser = False,
    name: Name = "lswap",
    run_as: Annotated[
        str | None,
        typer.Option(help="User to run as (default: the caller of sudo, or the file's owner)."),
    ] = None,
    socket: Annotated[
        bool,
        typer.Option(
            "--socket", help="Let systemd listen, and start lswap with the first request."
        ),
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Also start it, now and at every boot.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--print", "--dry-run", help="Only print the unit.")
    ] = False,
) -> None:
    """Write a systemd unit that serves CONFIG.

    systemd then reads its units again.
    """
    from llamaswap_py.config.load import read_config
    from llamaswap_py.server import service_text, socket_text

    path = (config or _usual_file()).resolve()
    unit = _unit(path, read_config(path), name, _account(run_as, path, user=user), socket=socket)
    texts = {f"{name}.service": service_text(unit)}
    if socket:
        texts[f"{name}.socket"] = socket_text(unit)
    if show:
        print("\n".join(f"# {_folder(user) / file}\n{text}" for file, text in texts.items()))
        return
    _need_systemd(user, path)
    begin = ["enable", "--now", f"{name}.{'socket' if socket else 'service'}"]
    with _undone_if_it_fails(user, name, [_folder(user) / file for file in texts]):
        for file, text in texts.items():
            _write(_folder(user) / file, text)
        _systemctl(user, "daemon-reload")
        if now:
            _systemctl(user, *begin)
    for file in texts:
        print(f"wrote {_folder(user) / file}")
    if not now:
        print(f"start it, now and at every boot:  {_command(user, *begin)}")
    if user:
        print("for a service that runs while you are logged out:  loginctl enable-linger")


@app.command()
def status(
    user: OfUser = False,
    name: Name = "lswap",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the service's state; exit with 1 if it is not running."""
    keys = ("LoadState", "ActiveState", "SubState", "StatusText", "MainPID", "Result", "NRestarts")
    answer = _systemctl(user, "show", f"{name}.service", f"--property={','.join(keys)}")
    found = dict(line.partition("=")[::2] for line in answer.splitlines() if "=" in line)
    if as_json:
        import msgspec

        print(msgspec.json.encode({key: found.get(key, "") for key in keys}).decode())
    elif found.get("LoadState") == "not-found":
        print(f"{name}.service is not installed (lswap service install)")
    else:
        print(f"{name}.service is {found.get('ActiveState')} ({found.get('SubState')})", end="")
        print(f", pid {found['MainPID']}" if found.get("MainPID", "0") != "0" else "")
        if found.get("StatusText"):
            print(found["StatusText"])
        if found.get("Result", "success") != "success":
            print(f"its last run ended with: {found['Result']}")
        print(f"its log: journalctl{' --user' if user else ''} -u {name}")
    if found.get("ActiveState") not in ("active", "reloading"):
        raise typer.Exit(1)


@app.command()
def uninstall(user: OfUser = False, name: Name = "lswap") -> None:
    """Stop the service and remove its unit.

    Running requests may finish. The configuration and the models stay.
    """
    remove_units(user, name)


def installed() -> list[tuple[bool, str, list[Path]]]:
    """Return the services that `install` wrote: whether they are the user's, names, unit files."""
    found = []
    for user in (True, False):
        for file in sorted(_folder(user).glob("*.service")):
            with suppress(OSError, UnicodeDecodeError):
                if MARK in file.read_text(encoding="utf-8"):
                    found.append((user, file.stem, _unit_files(user, file.stem)))
    return found


def _unit_files(user: bool, name: str) -> list[Path]:
    files = [_folder(user) / f"{name}.{kind}" for kind in ("socket", "service")]
    return [file for file in files if file.exists()]


def remove_units(user: bool, name: str, *, quiet: bool = False) -> None:
    """Stop a service and remove its units. Raises StateError."""
    here = _unit_files(user, name)
    if not here:
        file = _folder(user) / f"{name}.service"
        raise _failed(f"there is no {file}", "name the right one: --name, --user")
    if (problem := _no_systemd(user)) is not None:
        print(f"lswap: only the unit files are removed: {problem}", file=sys.stderr)
        here += [link for file in here for link in _links(file)]
    else:
        _systemctl(user, "disable", "--now", *(file.name for file in here))
    for file in here:
        try:
            file.unlink()
        except OSError as error:
            raise _failed(f"{file} cannot be removed: {error.strerror}", "use sudo") from None
        if not quiet:
            print(f"removed {file}")
    if problem is None:
        _systemctl(user, "daemon-reload")


def _links(file: Path) -> list[Path]:
    """Return the links that `systemctl enable` made, by which a unit starts at boot."""
    return [link for link in file.parent.glob(f"*.wants/{file.name}") if link.is_symlink()]


def _unit(
    path: Path, config: Config, name: str, account: struct_passwd | None, *, socket: bool
) -> Unit:
    """Gather the values of the unit from the file and from this machine."""
    from llamaswap_py.server import Unit

    stops = [preset.stop_timeout for preset in config.models.values()]
    command = (*_lswap(), "up", str(path), *(() if name == "lswap" else ("--name", name)))
    files = [command[0], path, *_files(config)]
    return Unit(
        name=name,
        command=command,
        folder=str(path.parent),
        shutdown_timeout=config.policy.shutdown_timeout,
        stop_timeout=max(stops, default=0.0),
        listen=config.listen,
        user=None if account is None else account.pw_name,
        groups=tuple(group for group in _GPU_GROUPS if _group_exists(group)),
        writable=() if account is None else (str(path.parent), *_writable(config, account)),
        env=tuple(_carried()),
        uses_tmp=any(str(file).startswith(("/tmp/", "/var/tmp/")) for file in files),
        modprobe=shutil.which("nvidia-modprobe"),
        by_socket=socket,
    )


def _carried() -> Iterable[tuple[str, str]]:
    """Return the variables of this shell that the unit copies.

    Variables of devices are copied even if they are empty: an empty one hides all devices.
    """
    from llamaswap_py.llamacpp.backends import DEVICE_VARIABLES

    yield from ((key, os.environ[key]) for key in _CARRIED if os.environ.get(key))
    yield from ((key, os.environ[key]) for key in sorted(DEVICE_VARIABLES) if key in os.environ)


def _files(config: Config) -> Iterable[str]:
    """Return the paths that a configuration names."""
    for preset in config.models.values():
        if preset.model is not None:
            yield preset.model
    yield from filter(None, (config.log.dir, config.keys.file, config.memory.keep_kv.dir))
    yield from (endpoint.path for endpoint in config.listen if endpoint.path is not None)
    if isinstance(config.engine, str):
        yield config.engine


def _writable(config: Config, account: struct_passwd) -> Iterable[str]:
    """Return the folders that lswap and llama-server write to, besides that of the file (into
    which POST /models writes)."""
    from llamaswap_py.storage.record_folder import xdg_base

    home = Path(account.pw_dir)
    yield str(xdg_base("XDG_CACHE_HOME", ".cache", home))  # estimates, models, shaders
    yield str(xdg_base("XDG_STATE_HOME", ".local/state", home))
    yield str(home / ".nv")  # the CUDA driver's compiled kernels
    for key in ("HF_HOME", "HF_HUB_CACHE"):
        if os.environ.get(key):
            yield os.environ[key]
    yield from filter(None, (config.log.dir, config.memory.keep_kv.dir))
    for endpoint in config.listen:
        if endpoint.path is not None:
            yield str(Path(endpoint.path).parent)


def _account(run_as: str | None, path: Path, *, user: bool) -> struct_passwd | None:
    """Return the account that a system service runs as; None for a user's own service."""
    import pwd

    if user:
        if run_as is not None:
            raise _failed(
                "your own service (--user) always runs as you", "leave --run-as or --user out"
            )
        return None
    try:
        chosen = run_as or os.environ.get("SUDO_USER") or pwd.getpwuid(path.stat().st_uid).pw_name
        account = pwd.getpwnam(chosen)
    except (KeyError, OSError):
        raise _failed(f"there is no user {run_as!r}", "name one with --run-as") from None
    if account.pw_uid == 0 and run_as is None:
        raise _failed(
            "models would be run as root", "name their owner with --run-as, or pass --user"
        )
    return account


def _lswap() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("lswap")
    return (str(script),) if script.exists() else (sys.executable, "-m", "llamaswap_py")


def _group_exists(name: str) -> bool:
    """Return whether a group exists: systemd starts no unit that names a missing one."""
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _folder(user: bool) -> Path:
    if not user:
        return _SYSTEM
    from llamaswap_py.storage.record_folder import xdg_base

    return xdg_base("XDG_CONFIG_HOME", ".config") / "systemd" / "user"


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text.encode())
    except OSError as error:
        remedy = "use sudo, or pass --user for a service of your own"
        raise _failed(f"{file} cannot be written: {error.strerror}", remedy) from None


def _usual_file() -> Path:
    """Return the file that `lswap up` uses if none is named. Raises ConfigError."""
    from llamaswap_py.cli.init import usual_file, usual_files
    from llamaswap_py.errors import ConfigError

    if (file := usual_file()) is None:
        looked = ", ".join(map(str, usual_files()))
        raise ConfigError(
            f"a service needs a configuration file, and there is none (looked for {looked})",
            remedy="`lswap init` writes one",
        )
    return file


def _need_systemd(user: bool, path: Path) -> None:
    """Raise StateError with another way if systemd cannot be reached; nothing is changed then."""
    if (problem := _no_systemd(user)) is not None:
        raise _failed(
            f"no service is installed: {problem}",
            f"start `lswap up {path}` in another way: tmux, cron's @reboot, a "
            "container's restart policy; --print shows the unit for another machine",
        )


def _no_systemd(user: bool) -> str | None:
    """Return why systemd (with `user`, this user's) cannot be reached; None if it can."""
    from llamaswap_py.errors import LswapError

    try:
        _systemctl(user, "show", "--property=Version")
    except LswapError as error:
        return error.message
    return None


@contextmanager
def _undone_if_it_fails(user: bool, name: str, files: list[Path]) -> Iterator[None]:
    """Restore the unit files if the block fails."""
    from llamaswap_py.errors import LswapError

    before = {file: file.read_text(encoding="utf-8") if file.exists() else None for file in files}
    try:
        yield
    except LswapError as error:
        new = [file.name for file, text in before.items() if text is None]
        with suppress(LswapError):
            if new:
                _systemctl(user, "disable", "--now", *new)
        for file, text in before.items():
            with suppress(OSError):
                if text is None:
                    file.unlink(missing_ok=True)
                else:
                    write_whole(file, text.encode())
        with suppress(LswapError):
            _systemctl(user, "daemon-reload")
        log = f"journalctl{' --user' if user else ''} -u {name}"
        raise _failed(
            f"{error.message}; the unit files are as before",
            f"{error.remedy} (its log, if it was started: {log})",
        ) from None


def _command(user: bool, *args: str) -> str:
    return " ".join(("systemctl", *(("--user",) if user else ()), *args))


def _systemctl(user: bool, *args: str) -> str:
    """Run systemctl and return its output; raises StateError with its error message."""
    command = _command(user, *args).split(" ")
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise _failed("this machine has no systemctl", "lswap service needs systemd") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
        said = lines[0] if lines else f"exit code {error.returncode}"
        raise _failed(f"`{' '.join(command)}` failed: {said}", "is systemd running?") from None
    return done.stdout


def _failed(message: str, remedy: str) -> LswapError:
    from llamaswap_py.errors import StateError

    return StateError(message, remedy=remedy)
