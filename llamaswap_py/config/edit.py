"""Changes to the configuration file: presets and single keys; all else stays as it is written."""

from __future__ import annotations

import difflib
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from llamaswap_py.config.yaml_edit import Place, UneditableError, with_key
from llamaswap_py.errors import ConfigError
from llamaswap_py.storage.regular_files import read_regular, write_whole

_ONE_AT_A_TIME: Final = threading.Lock()
"""Held while the file is changed: requests change it in several threads."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one file that is not written yet: its text before and after."""

    path: Path
    before: str
    after: str
    status: os.stat_result | None

    @property
    def diff(self) -> str:
        """The change as a unified diff."""
        old, new = (text.splitlines(keepends=True) for text in (self.before, self.after))
        lines = difflib.unified_diff(old, new, str(self.path), str(self.path), n=2)
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)

    def write(self) -> None:
        """Replace the file; raises ConfigError if it was changed since it was read."""
        with _ONE_AT_A_TIME:
            try:
                _replace(self.path, self.status, lambda out: out.write(self.after))
            except OSError as error:
                raise _unchangeable(self.path, error) from None


def edit_keys(path: Path, values: Mapping[Place, str | int | bool]) -> Edit:
    """Return the change that gives keys these values; writes nothing. Raises ConfigError."""
    import yaml

    path = path.resolve()  # a link stays one
    status = _status(path)
    try:
        before = after = read_regular(path).decode() if status else ""
        for place, value in values.items():
            after = with_key(after, place, value)
    except UneditableError as error:
        remedy = "write it there yourself"
        raise ConfigError(error.message, where=str(path), remedy=remedy) from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise _unchangeable(path, error) from None
    return Edit(path, before, after, status)


def add_preset(path: Path, name: str, values: dict[str, Any]) -> None:
    """Add a preset with these keys; makes the file if there is none. Raises ConfigError."""

    def add(models: Any) -> None:
        _refuse_second(path, models, name)
        models[name] = values

    _change(path, add)


def check_free(path: Path, name: str) -> None:
    """Raise ConfigError if add_preset() would, so that nobody waits for a download first."""
    _refuse_second(path, _models_of(path, _read(_yaml(), path, _status(path))), name)


def _refuse_second(path: Path, models: Any, name: str) -> None:
    if name in models:
        remedy = "pass --name"
        raise ConfigError(f"there is already a model {name!r}", where=str(path), remedy=remedy)


def remove_preset(path: Path, name: str, check: Callable[[], object] = lambda: None) -> None:
    """Remove a preset, unless `check` then raises ConfigError. Raises ConfigError."""

    def remove(models: Any) -> None:
        if name not in models:
            raise ConfigError(f"there is no model {name!r} in it", where=str(path))
        del models[name]

    before = read_regular(path) if path.is_file() else b""
    _change(path, remove)
    try:
        check()
    except ConfigError as error:
        write_whole(path, before)
        raise ConfigError(
            f"{name!r} was not removed, because without it the file is wrong: {error.message}",
            remedy="remove it there first",
        ) from None


def _change(path: Path, change: Callable[[Any], None]) -> None:
    """Change `models` of a file, and replace the file in one step."""
    yaml = _yaml()
    with _ONE_AT_A_TIME:
        path = path.resolve()  # a link stays one
        before = _status(path)
        root = _read(yaml, path, before)
        change(_models_of(path, root))
        try:
            _replace(path, before, lambda out: yaml.dump(root, out))
        except OSError as error:
            raise _unchangeable(path, error) from None


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _read(yaml: Any, path: Path, before: os.stat_result | None) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        root = yaml.load(read_regular(path).decode()) if before else {}
    except (OSError, UnicodeError, YAMLError) as error:
        raise _unchangeable(path, error) from None
    return {} if root is None else root


def _models_of(path: Path, root: Any) -> Any:
    models = root.setdefault("models", {}) if isinstance(root, dict) else None
    if models is None and isinstance(root, dict):  # `models:` with nothing below
        models = root["models"] = {}
    if not isinstance(models, dict):
        raise ConfigError("`models` is not a mapping", where=str(path))
    return models


def _unchangeable(path: Path, error: Exception) -> ConfigError:
    said = " ".join(str(error).split())
    remedy = f"see `lswap check {path}`"
    return ConfigError(f"the file cannot be changed: {said}", where=str(path), remedy=remedy)


def _replace(path: Path, before: os.stat_result | None, write: Callable[[IO[str]], object]) -> None:
    """Replace the file that was read, unless another program has changed it since."""
    out = tempfile.NamedTemporaryFile(  # noqa: SIM115 (it is renamed, or deleted by its name)
        "w", encoding="utf-8", dir=path.parent, prefix=".lswap-", delete=False
    )
    try:
        with out:
            write(out)
        os.chmod(out.name, before.st_mode if before else 0o644)
        if _state(_status(path)) != _state(before):
            remedy = "try again"
            message = "another program changed the file at the same time"
            raise ConfigError(message, where=str(path), remedy=remedy)
        os.replace(out.name, path)
    except BaseException:
        os.unlink(out.name)
        raise


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _state(status: os.stat_result | None) -> tuple[int, int, int] | None:
    return status and (status.st_mtime_ns, status.st_size, status.st_ino)
