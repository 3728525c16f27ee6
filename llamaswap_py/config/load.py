"""Reads the configuration and the keys from files.

In this package only this module, `scan.py` and `edit.py` use the disk.
"""

from __future__ import annotations

import logging
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llamaswap_py.config.api_keys import KeyRing, parse_keys, with_rights
from llamaswap_py.config.parse import load_files
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.sections import Config
from llamaswap_py.config.sources import SourceText
from llamaswap_py.config.yaml_tree import MAX_TEXT
from llamaswap_py.errors import ConfigError
from llamaswap_py.storage.regular_files import open_regular, read_regular
from llamaswap_py.units import MIB, format_size, showable


def read_config(path: str | os.PathLike[str]) -> Config:
    """Return the configuration in the file at `path`, or in the files of the folder there.

    Raises ConfigError if a file cannot be read, is not UTF-8 text, or has a mistake.
    """
    file = Path(path)
    return Origin(folder=file).read() if file.is_dir() else Origin(file=file).read()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration comes from: a file, a folder of files, models, the command line.

    The `*.yaml` files of the folder are read after the file, in the order of their names. Without
    file and folder, all models of `model_dirs` are served with the settings `BARE`. `model_dirs`
    are folders of models, or single GGUF files. `said` are settings of the command line, as YAML;
    they override those of the files.
    """

    file: Path | None = None
    folder: Path | None = None
    model_dirs: tuple[Path, ...] = ()
    said: str = ""

    @property
    def name(self) -> str:
        """Its name in errors and in the log."""
        named = self.file or self.folder
        return showable(str(named)) if named is not None else "without a file"

    @property
    def path(self) -> Path | None:
        """The path of the file or folder, by which configurations are told apart; None: no file."""
        return self.file or self.folder

    @property
    def beside(self) -> tuple[str, ...]:
        """What else tells apart two configurations of one `path`; empty for a file or folder."""
        folder = () if self.file is None or self.folder is None else (self.folder,)
        places = (os.path.realpath(place.expanduser()) for place in (*folder, *self.model_dirs))
        return (*sorted(places), *filter(None, [self.said]))

    def read(self, instead: Mapping[Path, str] | None = None) -> Config:
        """Return the configuration as it is now; raises ConfigError.

        `instead` are texts of some of its files to read instead of theirs.
        """
        other = {str(path): text for path, text in (instead or {}).items()}
        files = [_source(path, other.get(os.path.realpath(path))) for path in self.files()]
        if not files:
            files = [SourceText(self.name, os.getcwd(), BARE)]
        if self.said:
            files.append(SourceText(COMMAND_LINE, os.getcwd(), self.said))
        return load_files(
            files,
            name=self.name,
            env=os.environ,
            home=os.path.expanduser("~"),
            scan=scan_folder,
            model_dirs=[os.path.abspath(folder.expanduser()) for folder in self.model_dirs],
            keep_broken=True,
        )

    def files(self) -> tuple[Path, ...]:
        """Return the files it is read from; raises ConfigError for a folder without one."""
        files = [] if self.file is None else [self.file]
        if self.folder is not None:
            files += _yaml_files(self.folder)
        return tuple(files)


COMMAND_LINE: Final = "the command line"
"""The name of `Origin.said` in errors."""
BARE: Final = """\
defaults: {args: {parallel: 2, kv-unified: true}, ttl: 30m}
"""
"""The settings without a file: two requests at once, which share the context."""


def _yaml_files(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"the folder cannot be read: {reason}", where=str(folder), remedy="check the path"
        ) from None
    files = [
        folder / name
        for name in names
        if name.endswith((".yaml", ".yml")) and not name.startswith(".")
    ]
    if not files:
        remedy = f"put one there: lswap init {folder / 'lswap.yaml'}"
        raise ConfigError("there is no *.yaml file in it", where=str(folder), remedy=remedy)
    return files


def _source(file: Path, text: str | None = None) -> SourceText:
    folder = os.path.dirname(os.path.abspath(file))  # of the link, if the file is one
    return SourceText(showable(str(file)), folder, _text(file) if text is None else text)


def _text(file: Path) -> str:
    try:
        data = read_regular(file, _MOST + 1)
    except FileNotFoundError:
        remedy = f"check the path, or write one: lswap init {file}"
        raise ConfigError("there is no such file", where=str(file), remedy=remedy) from None
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "check its permissions"
        message = f"the file cannot be read: {reason}"
        raise ConfigError(message, where=str(file), remedy=remedy) from None
    if data.startswith(_GGUF):
        remedy = f"`lswap up {file}` serves it without a file, `lswap init` writes one"
        message = "this is a model (GGUF), not a configuration file (YAML)"
        raise ConfigError(message, where=str(file), remedy=remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        where = f"{file}:{line}"
        raise ConfigError(
            "this is not UTF-8 text", where=where, remedy="save it as UTF-8"
        ) from None


def keys_of(config: Config) -> KeyRing | None:
    """Return the keys of a configuration, None without a key file; blocks. Raises ConfigError."""
    said = config.keys
    if said.file is None:
        return None
    return with_rights(read_keys(said.file, strict=said.strict_modes), said.rights)


def read_keys(path: str | os.PathLike[str], *, strict: bool = True, empty: bool = False) -> KeyRing:
    """Return the keys in the file at `path`; blocks. Raises ConfigError.

    If `strict`, a file that another user may write is refused: that user could add admin keys.
    A file without a key is refused, unless it may be `empty`.
    """
    file = Path(path)
    try:
        with open_regular(file) as stream:
            status = os.fstat(stream.fileno())
            text = stream.read(_MOST_KEYS + 1).decode("utf-8-sig")
    except FileNotFoundError:
        remedy = f"make it with `lswap key new NAME --file {file}`"
        raise ConfigError("there is no such key file", where=str(file), remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "check its permissions"
        message = f"the key file cannot be read: {reason}"
        raise ConfigError(message, where=str(file), remedy=remedy) from None
    if strict:
        _check_owner(file, status)
    if len(text) > _MOST_KEYS:
        raise ConfigError(
            f"this key file is larger than {format_size(_MOST_KEYS)}",
            where=str(file),
            remedy="name the file that `lswap key new` writes",
        )
    keys = parse_keys(text, str(file))
    if not len(keys) and not empty:
        remedy = f"add one with `lswap key new NAME --file {file}`"
        raise ConfigError(
            "this key file has no key, so nobody could use lswap", where=str(file), remedy=remedy
        )
    return keys


def _check_owner(file: Path, status: os.stat_result) -> None:
    """Raise ConfigError if another user may write the key file; warn if others may read it."""
    own = os.geteuid()
    quoted = shlex.quote(str(file))
    if status.st_uid not in (own, 0):
        raise ConfigError(
            f"this key file belongs to another user ({status.st_uid}), who could add keys to it",
            where=str(file),
            remedy=f"chown {own} {quoted}, or say keys: {{strict_modes: false}} if you trust them",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"others may write this key file (mode {stat.S_IMODE(status.st_mode):04o}), and so "
            "add keys to it",
            where=str(file),
            remedy=f"chmod 600 {quoted}",
        )
    if status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        text = "%s: others may read this key file (mode %04o): chmod 600 %s"
        _log.warning(text, file, stat.S_IMODE(status.st_mode), quoted)


_log: Final = logging.getLogger("lswap")
_MOST_KEYS: Final = 4 * MIB
"""The largest key file, in bytes; 20,000 keys take less."""
_GGUF: Final = b"GGUF"
_MOST = (
    MAX_TEXT + 3
)  # just above the parser's limit, so that a model given by mistake is not read whole
