"""How addresses, devices and engines are written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, get_args

from llamaswap_py import units
from llamaswap_py.config.forms import (
    SIZE,
    TEXT,
    Form,
    at_key,
    expected,
    or_word,
    read_text,
    spell_size,
)
from llamaswap_py.config.listen import parse_endpoint
from llamaswap_py.config.nodes import UNKNOWN_KEY, Invalid, Listing, Node, Scalar, Table
from llamaswap_py.config.values import HOST, Backend, EngineChoice, PerDevice
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import ConfigError

if TYPE_CHECKING:
    from llamaswap_py.config.forms import Base, Schema

# Addresses


def _endpoint(node: Node, base: Base) -> Endpoint:
    text = read_text(node, "an address like 127.0.0.1:8080")
    path = text.removeprefix("unix:")
    try:
        if path != text and not path.startswith("//"):
            return parse_endpoint(f"unix:{base.path(path, node)}")
        return parse_endpoint(text)
    except ConfigError as error:
        raise Invalid(node, error.message, error.remedy) from None


def _listen(node: Node, base: Base) -> tuple[Endpoint, ...]:
    if not isinstance(node, Listing):
        return (_endpoint(node, base),)
    if not node.items:
        raise Invalid(node, "the list is empty", "write at least one address")
    endpoints = tuple(_endpoint(item, base) for item in node.items)
    for item, endpoint in zip(node.items, endpoints, strict=True):
        if endpoints.count(endpoint) > 1 and (endpoint.path or endpoint.port):
            raise Invalid(item, f"{endpoint} is here twice")
    return endpoints


_ADDRESS: Final[Schema] = {
    "title": "address",
    "type": "string",
    "pattern": r"^unix:.+|^[^/]*:[0-9]{1,5}$",
}
LISTEN: Final = Form(
    _listen,
    {"anyOf": [_ADDRESS, {"type": "array", "items": _ADDRESS, "minItems": 1}]},
    lambda value: str(value[0]) if len(value) == 1 else [str(each) for each in value],
)

# Devices

_DEVICE_NAME: Final = r"[A-Za-z][A-Za-z0-9_.:-]*"
_DEVICE_SCHEMA: Final[Schema] = {
    "title": "device",
    "type": "string",
    "pattern": f"^{_DEVICE_NAME}$",
}


def _device(text: str, node: Node) -> str:
    if text != HOST and text.lower() in (HOST, "cpu"):
        raise Invalid(node, f"{text!r} is not a device", f"main memory is called {HOST}")
    if not re.fullmatch(_DEVICE_NAME, text, re.ASCII):
        raise Invalid(node, f"{text!r} is not a device", f"write a name like CUDA0, or {HOST}")
    return text


def _devices(node: Node, _: Base) -> tuple[str, ...]:
    items = node.items if isinstance(node, Listing) else (node,)
    devices = tuple(_device(read_text(item, "a device like CUDA0"), item) for item in items)
    if not devices or len(set(devices)) < len(devices):
        raise Invalid(
            node, "name each device once" if devices else "the list is empty", "or write auto"
        )
    if HOST in devices and len(devices) > 1:
        raise Invalid(
            node, f"{HOST} stands alone: it hides every other device", "remove the others"
        )
    return devices


def _sizes(node: Node, base: Base) -> dict[str, int]:
    if not isinstance(node, Table) or not node.entries:
        raise expected(node, "a mapping like {CUDA0: 24GiB, host: 64GiB}")
    return {
        _device(name, Scalar(entry.line, name, name)): at_key(name, SIZE, entry.value, base)
        for name, entry in node.entries.items()
    }


def _spell_sizes(sizes: dict[str, int]) -> dict[str, str]:
    return {device: spell_size(size) for device, size in sizes.items()}


def _margin(node: Node, base: Base) -> PerDevice:
    if isinstance(node, Table):
        return PerDevice(units.GIB, _sizes(node, base))
    return PerDevice(SIZE.read(node, base))


SIZES: Final = Form(
    _sizes,
    {
        "type": "object",
        "propertyNames": _DEVICE_SCHEMA,
        "additionalProperties": SIZE.schema,
        "minProperties": 1,
    },
    _spell_sizes,
)
MARGIN: Final = Form(
    _margin,
    {"anyOf": [SIZE.schema, SIZES.schema]},
    lambda margin: _spell_sizes(margin.devices) if margin.devices else spell_size(margin.default),
)
BUDGETS: Final = or_word("auto", SIZES)
DEVICES: Final = or_word(
    "auto",
    Form(
        _devices,
        {"anyOf": [_DEVICE_SCHEMA, {"type": "array", "items": _DEVICE_SCHEMA, "minItems": 1}]},
        lambda value: value[0] if len(value) == 1 else list(value),
    ),
    "auto",
)

# The engine


def _engine(node: Node, base: Base) -> str | EngineChoice:
    if isinstance(node, Table):
        return _choice(node, base)
    text = read_text(node, "auto, a path, or {build: b11434, backend: cuda}")
    if text == "auto":
        return text
    if "/" not in text and not text.startswith("~"):
        remedy = f"write auto, a path (./{text}), or {{build: b11434, backend: cuda}}"
        raise Invalid(node, f"{text!r} is not an engine", remedy)
    return base.path(text, node)


def _choice(node: Table, base: Base) -> EngineChoice:
    build: int | None = None
    backend: Backend | None = None
    for key, entry in node.entries.items():
        text = at_key(key, TEXT, entry.value, base)
        if key == "build" and re.fullmatch(r"b?[0-9]{1,9}", text, re.ASCII):
            build = int(text.removeprefix("b"))
        elif key == "build":
            raise Invalid(entry.value, f"{text!r} is not a build", "write one like b11434", key=key)
        elif key == "backend" and text in get_args(Backend):
            backend = text
        elif key == "backend":
            known = ", ".join(get_args(Backend))
            raise Invalid(entry.value, f"{text!r} is not a backend", f"one of {known}", key=key)
        else:
            raise Invalid(entry, UNKNOWN_KEY, "known here: build, backend", key=key)
    if build is None and backend is None:
        raise Invalid(node, "the choice is empty", "write a build, a backend, or auto")
    return EngineChoice(build, backend)


ENGINE: Final = Form(
    _engine,
    {
        "anyOf": [
            {"const": "auto"},
            {"title": "path", "type": "string", "pattern": "^~|/"},
            {
                "type": "object",
                "additionalProperties": False,
                "minProperties": 1,
                "properties": {
                    "build": {"type": ["string", "integer"], "pattern": "^b?[0-9]{1,9}$"},
                    "backend": {"enum": list(get_args(Backend))},
                },
            },
        ]
    },
)
