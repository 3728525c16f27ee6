"""`lswap key …`: make, list and revoke API keys in a key file."""

from __future__ import annotations

import io
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamaswap_py.cli.common import command_group

if TYPE_CHECKING:
    from llamaswap_py.config.api_keys import KeyRing

__all__ = ["app"]

app = command_group("Make, list and revoke API keys.")

KeyFile = Annotated[
    Path, typer.Option("--file", help="The key file; the configuration names it as keys.file.")
]
_DEFAULT = Path("keys.yaml")
_ELSEWHERE = "an lswap of another user or in a container takes the key for up to four seconds more"


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="A name for the key; logs and lists show it.")],
    kind: Annotated[
        str, typer.Option(help="inference: may send requests; admin: may also load, unload, pin, …")
    ] = "inference",
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Limit the key to this model; may be repeated."),
    ] = None,
    rights: Annotated[
        list[str] | None,
        typer.Option(
            "--right",
            help="Allow more than requests to models: unload, ttl (Ollama's keep_alive), pin, "
            "slots; may be repeated.",
        ),
    ] = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Priority of its requests.")] = 0,
    weight: Annotated[
        int,
        typer.Option(min=1, max=100, help="Its shares of a full queue and of the turns."),
    ] = 1,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="How many requests it may have open at once.")
    ] = None,
    file: KeyFile = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key and print it once; the file has only a hash."""
    from llamaswap_py.config.api_keys import PREFIX, RIGHTS, check_name, hash_secret
    from llamaswap_py.errors import ConfigError

    check_name(name, str(file))
    if kind not in ("inference", "admin"):
        raise ConfigError(f"{kind!r} is not a kind of key", remedy="write inference or admin")
    for right in rights or ():
        if right not in RIGHTS:
            raise ConfigError(f"{right!r} is not a right", remedy=f"known: {', '.join(RIGHTS)}")
    if any(key.name == name for key in _read(file)):
        remedy = f"revoke it first: lswap key revoke {name!r}"
        raise ConfigError(f"there is a key named {name!r}", where=str(file), remedy=remedy)
    secret = PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": name, "hash": hash_secret(secret.encode()), "kind": kind}
    if rights:
        entry["rights"] = list(dict.fromkeys(rights))
    if models:
        entry["models"] = list(models)
    if priority:
        entry["priority"] = priority
    if weight != 1:
        entry["weight"] = weight
    if max_in_flight is not None:
        entry["max_in_flight"] = max_in_flight
    begun = not file.exists()
    _change(file, lambda keys: keys.append(entry))
    if not begun:
        _tell_running()
    if as_json:
        _print_json({"name": name, "key": secret, "file": str(file)})
        return
    print(secret)
    typer.echo(f"kept as a hash in {file}; this secret is not shown again", err=True)
    if begun:
        typer.echo(f"start with `lswap up --keys {file}`, or name it in the file:", err=True)
        typer.echo(f"  keys: {{file: {file}}}", err=True)


@app.command("list")
def list_(
    file: KeyFile = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the keys, without their hashes."""
    from llamaswap_py.cli.tables import print_table

    keys = list(_read(file))
    if as_json:
        _print_json(
            [
                {
                    "name": key.name,
                    "kind": key.kind,
                    "rights": key.rights,
                    "models": key.models,
                    "priority": key.priority,
                    "weight": key.weight,
                    "max_in_flight": key.max_in_flight,
                }
                for key in keys
            ]
        )
        return
    rows = [
        (
            key.name,
            key.kind,
            "all" if key.is_admin else ", ".join(key.rights) or "-",
            "all" if key.models is None else ", ".join(key.models),
            str(key.priority),
            str(key.weight),
            str(key.max_in_flight or "-"),
        )
        for key in keys
    ]
    print_table(("name", "kind", "rights", "models", "priority", "weight", "at once"), rows)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")], file: KeyFile = _DEFAULT
) -> None:
    """Remove a key from the file.

    A running lswap then reads the file again, and accepts the key no more.
    """
    from llamaswap_py.errors import ConfigError

    if all(key.name != name for key in _read(file)):
        remedy = "`lswap key list` shows all keys; --file names another file"
        raise ConfigError(f"there is no key named {name!r}", where=str(file), remedy=remedy)

    def remove(keys: list[Any]) -> None:
        keys[:] = [one for one in keys if one["name"] != name]

    _change(file, remove)
    told = _tell_running()
    print(f"{name} is revoked; " + (f"{told} has been told" if told else _ELSEWHERE))


def _tell_running() -> str:
    """Make the running lswaps of this user read their files again; return their addresses."""
    import signal

    from llamaswap_py.children.running_lswaps import find_running

    told = []
    for one in find_running(os.environ):
        # While it starts or stops, lswap has no handler for the signal, which would end it.
        if one.served is not None and not one.served.stopping:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, signal.SIGHUP)
                told.append(str(one))
    return ", ".join(told)


def _read(file: Path) -> KeyRing:
    """Return the keys of a file; none if the file does not exist yet."""
    from llamaswap_py.config.api_keys import KeyRing
    from llamaswap_py.config.load import read_keys

    return read_keys(file, empty=True) if os.path.lexists(file) else KeyRing(())


def _change(file: Path, change: Any) -> None:
    """Rewrite the whole file, readable by its owner alone; its comments stay."""
    from ruamel.yaml import YAML

    from llamaswap_py.errors import ConfigError
    from llamaswap_py.storage.regular_files import read_regular, write_whole

    yaml = YAML()
    try:
        root = yaml.load(read_regular(file).decode()) if os.path.lexists(file) else None
        root = {"keys": []} if root is None else root
        root.setdefault("keys", [])
        change(root["keys"])
        out = io.BytesIO()
        yaml.dump(root, out)
        write_whole(file, out.getvalue(), mode=0o600)
        file.chmod(0o600)  # on any failure
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file cannot be written: {reason}", where=str(file)) from None


def _print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode())
