"""Read the configuration from files; with `scan.py` all of this folder that touches the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llamaswap_py.config.document import MAX_TEXT
from llamaswap_py.config.keyfile import KeyRing, parse_keys
from llamaswap_py.config.parse import load_files
from llamaswap_py.config.records import Config
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.sources import SourceText
from llamaswap_py.errors import ConfigError


def read_config(path: str | os.PathLike[str]) -> Config:
    """Return the configuration in the file at `path`, or in the files of the folder there.

    Raises ConfigError when it cannot be read, is not UTF-8 text, or says something wrong.
    """
    file = Path(path)
    return Origin(folder=file).read() if file.is_dir() else Origin(file=file).read()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration comes from: a file, a folder of files, models, the command line.

    The folder's `*.yaml` files follow the file, in the order of their names. Without both, every
    model that is found is served with `BARE`. `model_dirs` are folders of models, or single GGUF
    files. `said` is what the command line says besides, as YAML; it overrules the files.
    """

    file: Path | None = None
    folder: Path | None = None
    model_dirs: tuple[Path, ...] = ()
    said: str = ""

    @property
    def name(self) -> str:
        """How errors and the log call it."""
        named = self.file or self.folder
        return str(named) if named is not None else "without a file"

    @property
    def path(self) -> Path | None:
        """What tells two configurations apart; None where there is no file."""
        return self.file or self.folder

    @property
    def beside(self) -> tuple[str, ...]:
        """What tells two configurations of one `path` apart; empty for a file or folder alone."""
        folder = () if self.file is None or self.folder is None else (self.folder,)
        places = (os.path.realpath(place.expanduser()) for place in (*folder, *self.model_dirs))
        return (*sorted(places), *filter(None, [self.said]))

    def read(self) -> Config:
        """Return the configuration as it is now; raises ConfigError."""
        files = [_source(path) for path in self.files()]
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
"""How errors call what `Origin.said` says."""
BARE: Final = """\
defaults: {args: {ctx-size: 16384, parallel: 2, kv-unified: true}, ttl: 30m}
"""
"""What is served when there is no file: a context that most machines have memory for."""


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


def _source(file: Path) -> SourceText:
    folder = os.path.dirname(os.path.abspath(file))  # as named: a link keeps its place
    return SourceText(str(file), folder, _text(file))


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST + 1)
    except FileNotFoundError:
        remedy = f"check the path, or write one: lswap init {file}"
        raise ConfigError("there is no such file", where=str(file), remedy=remedy) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"the file cannot be read: {reason}", where=str(file)) from None
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


_GGUF: Final = b"GGUF"
_MOST = (
    MAX_TEXT + 3
)  # more than the parser takes, so that a model given by mistake is not read whole
