"""The JSON Schema says what the reader does; the reference page has every key."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from llamaswap_py.config.json_schema import json_schema
from llamaswap_py.config.parse import load_config
from llamaswap_py.config.reference import reference_rows
from llamaswap_py.errors import ConfigError

SCHEMA = json_schema()
MODELS = "models: {a: {model: a.gguf}}\n"

GOOD = [
    MODELS,
    """
listen: [127.0.0.1:8080, "[::1]:8080", "unix:/run/x.sock"]
allow_unauthenticated: true
allowed_hosts: [gpubox.lan]
limits: {header: 64KiB, body: 64MiB, upload: 512MiB, idle: 75s, head_read: 30s}
default_model: a
autoload: true
engine: {build: b11434, backend: cuda}
env: {A: 1, B: x}
memory: {margin: {CUDA0: 2GiB, host: 0}, devices: {CUDA0: 24GiB}, settle: 0, cache_ram: 0}
policy:
  when_full: {substitute: loaded}
  max_loaded: 0
  max_wait: 60s
  queue: {limit: 512, timeout: 15m}
  shutdown_timeout: 1m30s
waiting: {notice: 10s}
log: {level: debug, format: json, dir: null}
defaults:
  args: {ctx-size: 16384, parallel: 2, kv-unified: true}
  ttl: 30m
  engine: ./llama-server
  when_full: null
groups: {big: {exclusive: [a, b/c:q4]}}
vars: {root: ~/models, long: 1h, some: 2}
models:
  a:
    model: "${root}/a.gguf"
    args: {-c: 3, cache-type-k: q8_0, lora: [a.gguf, b.gguf], temp: 0.5}
    extra: [--top-k, 3]
    aliases: [gpt-4o-mini]
    pin: false
    preload: true
    ttl: never
    device: [CUDA0, CUDA1]
    memory: {CUDA0: 9.5GiB}
    concurrency: ${some}
    drain_timeout: ${long}
    on_drain_deadline: wait
    metadata: {note: x, n: 1}
    priority: -3
    when_full: "substitute: b/c:q4"
    fit: {context: {least: 8k, want: 65536}, favor: context, margin: {CUDA0: 2GiB}}
    sleep: 5m
    prefer: first
    variants: [{name: full}, {name: lean, args: {ncmoe: 20}, memory: {CUDA0: 1GiB}, device: CUDA1}]
  b/c:q4: {model: b, device: host, concurrency: 2, memory: null}
  w: {cmd: [w, -p, "{port}", 3], ready: {http: /health}, memory: {host: 1GiB}}
  s: {cmd: [w, "{socket}"], ready: {line: up}}
model_dirs: [~/models]
""",
    "model_dirs: [.]",
    "{model_dirs: [.], models: {a: {ttl: 5m}}}",
]

BAD = [
    "{}",
    "models: {a: {}}",
    "models: {a: {model: ''}}",
    "{model_dirs: [.], models: {a: {hf: u/r, cmd: [y, '{port}']}}}",
    "models: {'a,b': {model: x}}",
    "models: {a: {model: x, tll: 30m}}",
    "models: {a: {model: x, cmd: [y, '{port}']}}",
    "models: {a: {cmd: y}}",
    "models: {a: {cmd: []}}",
    "models: {a: {cmd: [y, '{port}'], ready: {}}}",
    "models: {a: {cmd: [y, '{port}'], ready: {http: /, line: x}}}",
    "models: {a: {cmd: [y, '{port}'], ready: {http: x}}}",
    "models: {a: {cmd: [y, '{port}'], ready: {tcp: x}}}",
    "model_dirs: x",
    "models: {a: {model: x, ttl: 30}}",
    "models: {a: {model: x, ttl: 30x}}",
    "models: {a: {model: x, load_stall: 0}}",
    "models: {a: {model: x, pin: 1}}",
    "models: {a: {model: x, aliases: y}}",
    "models: {a: {model: x, aliases: [y, y]}}",
    "models: {a: {model: x, concurrency: 0}}",
    "models: {a: {model: x, concurrency: all}}",
    "models: {a: {model: x, on_drain_deadline: kill}}",
    "models: {a: {model: x, args: {x: null}}}",
    "models: {a: {model: x, args: {x: {y: 1}}}}",
    "models: {a: {model: x, args: [x]}}",
    "models: {a: {model: x, extra: [true]}}",
    "models: {a: {model: x, env: {LLAMA_ARG_PORT: 1}}}",
    "models: {a: {model: x, memory: {}}}",
    "models: {a: {model: x, memory: {CUDA0: 3}}}",
    "models: {a: {model: x, engine: cuda}}",
    "models: {a: {model: x, engine: {backend: x}}}",
    "models: {a: {model: x, device: []}}",
    "models: {a: {model: x, metadata: {x: [1]}}}",
    "models: {a: {model: x, fit: loose}}",
    "models: {a: {model: x, sleep: 0}}",
    "models: {a: {model: x, priority: high}}",
    "models: {a: {model: x, priority: 1.5}}",
    "models: {a: {model: x, priority: -101}}",
    "models: {a: {model: x, prefer: last}}",
    "models: {a: {model: x, when_full: substitute}}",
    "models: {a: {model: x, when_full: {substitute: ''}}}",
    "models: {a: {model: x, when_full: {other: b}}}",
    "models: {a: {model: x, when_full: null}}",
    "models: {a: {model: x, variants: []}}",
    "models: {a: {model: x, variants: {name: y}}}",
    "models: {a: {model: x, variants: [y]}}",
    "models: {a: {model: x, variants: [{args: {c: 1}}]}}",
    "models: {a: {model: x, variants: [{name: y, ttl: 1m}]}}",
    f"{MODELS}groups: {{g: {{}}}}",
    f"{MODELS}groups: {{g: [a, b]}}",
    f"{MODELS}groups: {{g: {{exclusive: a}}}}",
    f"{MODELS}defaults: {{variants: [{{name: y}}]}}",
    f"{MODELS}listen: 8080",
    f"{MODELS}listen: localhost",
    f"{MODELS}listen: []",
    f"{MODELS}memory: {{margin: 1}}",
    f"{MODELS}memory: {{devices: many}}",
    f"{MODELS}policy: {{max_loaded: -1}}",
    f"{MODELS}policy: {{queue: 3}}",
    f"{MODELS}log: {{level: trace}}",
    f"{MODELS}limits: {{body: 0}}",
    f"{MODELS}vars: {{a: [x]}}",
    f"{MODELS}defaults: {{model: x}}",
]


def load(text: str) -> None:
    load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("text", GOOD)
def test_good_files(text: str) -> None:
    load(text)
    Draft202012Validator(SCHEMA).validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", BAD)
def test_bad_files(text: str) -> None:
    assert not Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        load(text)


def objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for each in schema for found in objects(each)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for each in schema.values() for found in objects(each))]


def test_every_default_and_example_fits_its_own_schema() -> None:
    with_values = [each for each in objects(SCHEMA) if "examples" in each or "default" in each]
    assert len(with_values) > 40
    for each in with_values:
        validator = Draft202012Validator(each)
        for value in (*each.get("examples", ()), *([each["default"]] if "default" in each else ())):
            validator.validate(value)


def test_the_reference_has_every_key_once() -> None:
    rows = {row.key: row for row in reference_rows()}
    assert len(rows) == len(reference_rows())
    assert rows["policy.max_wait"].default == "1m"
    assert rows["policy.max_wait"].type == "duration"
    assert rows["memory.margin"].type == "auto or size or mapping"
    assert rows["listen"].default == "127.0.0.1:8080"
    assert rows["models.NAME.model"].default == "required"
    assert rows["models.NAME.when_full"].type == "wait or refuse or substitute: NAME or mapping"
    assert rows["models.NAME.variants"][1:3] == ("list", "none")
    assert rows["models.NAME.variants[].name"].default == "required"
    assert rows["groups.NAME.exclusive"].type == "list"
    assert rows["models.NAME.ttl"][1:3] == ("never or duration", "never")
    for prefix, record in (("", SCHEMA), ("models.NAME.", SCHEMA["$defs"]["preset"])):
        for name, schema in record["properties"].items():
            inner = (
                schema.get("properties") if name not in ("defaults", "request", "ready") else None
            )
            for key in [f"{name}.{part}" for part in inner] if inner else [name]:
                found = [row for row in rows if row.startswith(f"{prefix}{key}")]
                assert found, key
