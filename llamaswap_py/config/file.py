"""Read the configuration from a file: the only part of this folder that touches the machine."""

from __future__ import annotations

import os
from pathlib import Path

from llamaswap_py.config.document import MAX_TEXT
from llamaswap_py.config.keyfile import KeyRing, parse_keys
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.records import Config
from llamaswap_py.errors import ConfigError


def read_config(path: str | os.PathLike[str]) -> Config:
    """Return the configuration in the file at `path`.

    Raises ConfigError when it cannot be read, is not UTF-8 text, or says something wrong.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST + 1)
    except FileNotFoundError:
        raise ConfigError(
            "there is no such file", where=str(file), remedy="check the path"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file cannot be read: {reason}", where=str(file)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        where = f"{file}:{line}"
        raise ConfigError(
            "this is not UTF-8 text", where=where, remedy="save it as UTF-8"
        ) from None
    base = os.path.dirname(os.path.abspath(file))  # the folder as named: a link keeps its place
    home = os.path.expanduser("~")
    return load_config(text, path=file, base_dir=base, env=os.environ, home=home)


def read_keys(path: str | os.PathLike[str]) -> KeyRing:
    """Return the keys in the file at `path`; raises ConfigError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        remedy = f"make it with `lswap key new NAME --file {file}`"
        raise ConfigError("there is no such key file", where=str(file), remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file cannot be read: {error}", where=str(file)) from None
    keys = parse_keys(text, str(file))
    if not len(keys):
        remedy = f"add one with `lswap key new NAME --file {file}`"
        raise ConfigError(
            "this key file has no key: nobody could ask", where=str(file), remedy=remedy
        )
    return keys


_MOST = (
    MAX_TEXT + 3
)  # more than the parser takes, so that a model given by mistake is not read whole
