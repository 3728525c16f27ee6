"""Change a file of people's own: what is in it stays as it is written, comments and all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamaswap_py.errors import ConfigError


def add_preset(path: Path, name: str, values: dict[str, Any]) -> None:
    """Add a preset with these keys; makes the file if there is none. Raises ConfigError."""

    def add(models: Any) -> None:
        if name in models:
            raise ConfigError(
                f"there is a model {name!r} already", where=str(path), remedy="pass --name"
            )
        models[name] = values

    _change(path, add)


def remove_preset(path: Path, name: str) -> None:
    """Take a preset out. Raises ConfigError."""

    def remove(models: Any) -> None:
        if name not in models:
            raise ConfigError(f"there is no model {name!r} in it", where=str(path))
        del models[name]

    _change(path, remove)


def _change(path: Path, change: Callable[[Any], None]) -> None:
    """Change `models` of a file, and put the file in place in one step."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        root: Any = yaml.load(path.read_text(encoding="utf-8")) if path.exists() else {}
        root = {} if root is None else root
        models = root.setdefault("models", {}) if isinstance(root, dict) else None
        if models is None and isinstance(root, dict):  # `models:` with nothing below
            models = root["models"] = {}
        if not isinstance(models, dict):
            raise ConfigError("`models` is no mapping", where=str(path))
        change(models)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".lswap-", delete=False
        ) as out:
            yaml.dump(root, out)
        os.chmod(out.name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(out.name, path)
    except (OSError, YAMLError) as error:
        raise ConfigError(f"the file cannot be changed: {error}", where=str(path)) from None
