"""The options and the client of all commands that talk to a running lswap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamaswap_py.cli.completion import model_names

if TYPE_CHECKING:
    from llamaswap_py.client.remote import Remote

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="LSWAP_URL",
        help="The running lswap: http://HOST:PORT or unix:PATH (default: the one that runs here).",
        show_default=False,
    ),
]
Key = Annotated[
    str | None, typer.Option("--key", envvar="LSWAP_KEY", help="An API key, if lswap needs one.")
]
Model = Annotated[str, typer.Argument(help="A model's name or alias.", autocompletion=model_names)]
MaybeModel = Annotated[
    str | None,
    typer.Argument(help="A model's name or alias.", autocompletion=model_names, show_default=False),
]


def remote(url: str | None, key: str | None) -> Remote:
    """Return a client of the lswap that the options name."""
    from llamaswap_py.cli.servers import find_url
    from llamaswap_py.client.remote import Remote

    return Remote(find_url(url), key=key)


def print_json(value: Any) -> None:
    """Print a record as one line of JSON."""
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)
