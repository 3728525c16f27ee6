"""API keys: the file with their hashed secrets, what each may do, and the section `keys`. Pure.

A secret is 256 random bits. So it cannot be guessed from its plain SHA-256, which the file has.
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
"""The rights an inference key can have besides sending requests; an admin key has them all.

`unload`: unload a model. `ttl`: change how long a model stays (Ollama's `keep_alive`, 0 included).
`pin`: pin and unpin a model. `slots`: see, save, restore and erase slots of a llama-server.
"""
RIGHTS: Final[tuple[Right, ...]] = get_args(Right)


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One API key.

    `models` are those it may use; None: all. `priority` is the default of its requests and the
    highest they may ask for. `weight` is its share where several keys wait for the same model: of
    the places in a full queue, and of the turns. `max_in_flight` is how many of its requests may be
    open at once; None: `limits.max_in_flight` of the configuration.
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
        """Whether it may do what affects the requests of other keys."""
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
        """Return the entry with the same secret and name as `key`, which is of another file."""
        found = self._keys.get(key.hash)
        return found if found is not None and found.name == key.name else None

    def find(self, secret: bytes) -> ApiKey | None:
        """Return the key with this secret. The time it takes tells nothing about other secrets."""
        digest = hash_secret(secret)
        found = self._keys.get(digest)
        return found if found is not None and hmac.compare_digest(found.hash, digest) else None


def hash_secret(secret: bytes) -> str:
    """Return what the file keeps of a secret: `sha256:…`."""
    return "sha256:" + hashlib.sha256(secret).hexdigest()


def parse_keys(text: str, source: str) -> KeyRing:
    """Read a key file; raises ConfigError that names `source` and never a secret."""
    try:
        root = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        remedy = "`lswap key new NAME` writes a file that is right"
        raise ConfigError("this is not YAML", where=where, remedy=remedy) from None
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
            raise ConfigError(
                f"two keys are named {one.name!r}", where=source, remedy="rename one of them"
            )
        names.add(one.name)
    return KeyRing(found)


def with_rights(keys: KeyRing, rights: tuple[Right, ...]) -> KeyRing:
    """Return the keys, each with these rights added to its own."""
    if not rights:
        return keys
    return KeyRing(msgspec.structs.replace(key, rights=(*key.rights, *rights)) for key in keys)


def check_name(name: str, source: str) -> None:
    """Raise ConfigError if a key cannot have this name."""
    if not _NAME.fullmatch(name):
        remedy = "use at most 64 letters, digits, blanks and . _ @ -"
        raise ConfigError(f"a key cannot be named {name!r}", where=source, remedy=remedy)


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
