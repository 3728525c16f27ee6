"""API keys: the file with their hashed secrets, what each may do, and the section `keys`. Pure.

Secrets are 256 random bits, so a plain SHA-256 of one tells nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
import yaml

from llamaswap_py.config.forms import PATH, Record, key, or_null, plain, words_of
from llamaswap_py.errors import ConfigError

PREFIX: Final = "lsk-"
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[\w.@ -]{1,64}")

Right: TypeAlias = Literal["unload", "ttl", "pin", "slots"]
"""What an inference key may do to others, if its entry says so; an admin key may do all of it.

`unload`: unload a model. `ttl`: change how long a model stays (Ollama's `keep_alive`, 0 included).
`pin`: pin and unpin a model. `slots`: see, save, restore and erase slots of a llama-server.
"""
RIGHTS: Final[tuple[Right, ...]] = get_args(Right)


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key. `models` None means all; `priority` is the highest it may ask for, and its own.

    `weight` is how many shares it has where keys wait for the same model: of the places of a full
    queue, and of the turns. `max_in_flight` is how many of its requests may be open at once; None:
    as many as the configuration says (`limits.max_in_flight`).
    """

    name: str
    hash: str
    kind: Literal["inference", "admin"] = "inference"
    rights: tuple[Right, ...] = ()
    models: tuple[str, ...] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    weight: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    max_in_flight: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it may do what changes more than its own requests."""
        return self.kind == "admin"

    def may(self, right: Right) -> bool:
        """Return whether it has a right."""
        return self.is_admin or right in self.rights

    def may_use(self, preset: str) -> bool:
        """Return whether it may use a preset, by its id."""
        return self.models is None or preset in self.models


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: tuple[ApiKey, ...] = ()


class KeyRing:
    """All keys of a file, found by their secret."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = {key.hash: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Any:
        return iter(self._keys.values())

    def same(self, key: ApiKey) -> ApiKey | None:
        """Return the entry of a key of another file: the same secret under the same name."""
        found = self._keys.get(key.hash)
        return found if found is not None and found.name == key.name else None

    def find(self, secret: bytes) -> ApiKey | None:
        """Return the key with this secret, in a time that tells nothing about the others'."""
        digest = hash_secret(secret)
        found = self._keys.get(digest)
        return found if found is not None and hmac.compare_digest(found.hash, digest) else None


def hash_secret(secret: bytes) -> str:
    """Return how a secret is kept: `sha256:…`."""
    return "sha256:" + hashlib.sha256(secret).hexdigest()


def parse_keys(text: str, source: str) -> KeyRing:
    """Read a key file; raises ConfigError naming `source`, and never a secret."""
    try:
        root = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        raise ConfigError("this is not YAML", where=where) from None
    try:
        found = msgspec.convert(root if root is not None else {}, _KeyFile).keys
    except msgspec.ValidationError as error:
        remedy = "`lswap key new NAME` writes entries that are right"
        raise ConfigError(str(error), where=source, remedy=remedy) from None
    names: set[str] = set()
    for one in found:
        if not _HASH.fullmatch(one.hash):
            raise ConfigError(
                f"the key {one.name!r} has no hash of the form sha256:…",
                where=source,
                remedy="secrets are not kept in the file: make one with `lswap key new NAME`",
            )
        check_name(one.name, source)
        if one.name in names:
            raise ConfigError(f"two keys are named {one.name!r}", where=source)
        names.add(one.name)
    return KeyRing(found)


def with_rights(keys: KeyRing, rights: tuple[Right, ...]) -> KeyRing:
    """Return the keys, each with these rights besides its own."""
    if not rights:
        return keys
    return KeyRing(msgspec.structs.replace(key, rights=(*key.rights, *rights)) for key in keys)


def check_name(name: str, source: str) -> None:
    """Raise ConfigError for what is not a name of a key."""
    if not _NAME.fullmatch(name):
        remedy = "letters, digits, blanks and . _ @ -, at most 64"
        raise ConfigError(f"{name!r} is not a name of a key", where=source, remedy=remedy)


class Keys(Record, frozen=True):
    """The section `keys`: where the key file is, and what its keys may do."""

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
