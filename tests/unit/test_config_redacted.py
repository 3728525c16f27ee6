"""What is shown of a configuration: its keys and numbers, and nothing that may be secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaswap_py.config.redacted import redacted
from llamaswap_py.config.yaml_tree import plain_value, read_yaml

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Sentinel-of-a-secret"


def shown(text: str) -> Any:
    return redacted(plain_value(read_yaml(text, "config")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        f"vars: {{word: {SECRET}}}",
        f"env: {{WORD: {SECRET}}}",
        f"defaults: {{env: {{WORD: {SECRET}}}}}",
        f"models: {{a: {{env: {{WORD: {SECRET}}}}}}}",
        f"models: {{a: {{env: [{SECRET}]}}}}",
        f"models: {{a: {{args: {{api-key: {SECRET}, hf-token: [{SECRET}], hft: {SECRET}}}}}}}",
        f"models: {{a: {{args: {{hf_token: {SECRET}}}}}}}",
        f"models: {{a: {{variants: [{{args: {{api-key: {SECRET}}}}}]}}}}",
        f"models: {{a: {{extra: [--api-key, {SECRET}, --hf-token={SECRET}]}}}}",
        f"models: {{a: {{cmd: 'x --password {SECRET}'}}}}",
        f"models: {{a: {{cmd: [x, --header, 'Authorization: Bearer {SECRET}']}}}}",
        f"models: {{a: {{cmd: {{words: [x, --api-key, {SECRET}]}}}}}}",
        f'models: {{a: {{cmd: "x \'no end --api-key {SECRET}"}}}}',
        f"models: {{a: {{stop_cmd: [x, --api-key, {SECRET}]}}}}",
        f"models: {{a: {{request: {{set: {{system: {SECRET}}}}}}}}}",
        f"models: {{a: {{request: {{per_name: {{b: {{set: {{stop: [{SECRET}]}}}}}}}}}}}}",
        f"models: {{a: {{args: {{chat-template: '{'x' * 200}{SECRET}'}}}}}}",
        f'models: {{a: {{metadata: {{note: "one\\n{SECRET}"}}}}}}',
        f"keys: [{{name: a, hash: {SECRET}}}]",
        f"keys: {{file: keys.yaml, secret: {SECRET}}}",
        f"apiKeys: [{SECRET}]\nmodels: {{a: {{cmdStop: {SECRET}}}}}",
        f"models: [{SECRET}]",
        f"models: {{a: {SECRET}}}",
        SECRET,
        f"[{SECRET}]",
    ],
)
def test_nothing_that_may_be_secret_is_shown(text: str) -> None:
    assert SECRET not in yaml.safe_dump(shown(text), allow_unicode=True)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "configs").glob("*.yaml")) if path.name != "imported.yaml"],
    ids=lambda path: path.name,
)
def test_the_examples_are_shown_whole(path: Path) -> None:
    """Only what is said above is left out of them."""
    text = path.read_text(encoding="utf-8")
    whole = plain_value(read_yaml(text, path.name))  # type: ignore[arg-type]
    for part in (whole, *whole["models"].values(), whole.get("defaults") or {}):
        for name in ("env", "vars", "request", "cmd", "stop_cmd"):
            part.pop(name, None)
    assert redacted(whole) == whole


def test_what_is_left_out_says_so() -> None:
    text = "models: {a: {ttl: 5m, request: {set: {seed: 7, stop: abc}}, env: {A: b}, nonsense: 1}}"
    assert shown(text) == {
        "models": {
            "a": {
                "ttl": "5m",
                "request": {"set": {"seed": 7, "stop": "[3 characters left out]"}},
                "env": {"A": "[redacted]"},
                "nonsense": "[redacted]",
            }
        }
    }
