"""`lswap schema`: the JSON Schema of the configuration file."""

from __future__ import annotations

import json

from llamaswap_py.config.json_schema import json_schema


def run() -> None:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
