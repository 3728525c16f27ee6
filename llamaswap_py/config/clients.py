"""The keys `keys` and `cors`: which clients may use this server, and what they may do."""

from __future__ import annotations

from typing import Annotated

from llamaswap_py.config.api_keys import RIGHTS, Right
from llamaswap_py.config.forms import PATH, Record, key, or_null, plain, words_of
from llamaswap_py.config.origins import ORIGINS


class Keys(Record, frozen=True):
    """API keys."""

    file: Annotated[
        str | None,
        key(
            "The key file, relative to this file's folder; `lswap key new` writes it.",
            or_null(PATH),
            "keys.yaml",
        ),
    ] = None
    strict_modes: Annotated[
        bool, plain("Refuse a key file that another user may write.", False)
    ] = True
    rights: Annotated[
        tuple[Right, ...],
        key(
            "What every inference key may do beyond sending requests: `unload` models, change "
            "their `ttl` by Ollama's `keep_alive`, `pin` them, or see, save, restore and erase "
            "their `slots`. A key's own `rights` in the key file are added.",
            words_of(RIGHTS),
            ["ttl"],
            ["unload", "ttl"],
        ),
    ] = ()


class Cors(Record, frozen=True):
    """Pages of other origins that may use this server from a browser."""

    origins: Annotated[
        tuple[str, ...],
        key(
            "Origins of the pages: https://chat.lan, http://localhost:* (any port), "
            "https://*.lan, chrome-extension://* (any extension), app://obsidian.md; or * for "
            "all.",
            ORIGINS,
            ["https://chat.lan", "app://obsidian.md"],
        ),
    ] = ()
