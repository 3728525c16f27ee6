"""Defaults of earlier releases, for files that say `compat: VERSION`.

A release may change a default. A file that names an earlier release gets the defaults of that
release for every key it does not set itself, so that an upgrade changes nothing for its owner.
"""

from __future__ import annotations

from typing import Any, Final

from llamaswap_py.config.forms import Form
from llamaswap_py.config.yaml_tree import Entry, Invalid, Listing, Node, Scalar, Table
from llamaswap_py.llamacpp.options import long_name

PROGRAMS: Final = "presets with cmd"
"""Stands first in the place of a key which is written into every preset that has `cmd`."""

# Release -> the place of a key -> its default in that release, as it is written in YAML. A key of
# presets has its place in `defaults`, or below PROGRAMS. When a default changes, each release
# before the change gets a line.
OLD_DEFAULTS: Final[dict[str, dict[tuple[str, ...], Any]]] = {
    "0.1": {
        # What a preset left open was left to the engine, with all layers on the devices.
        ("defaults", "fit"): "exact",
        # Integrated GPUs were used beside cards.
        ("defaults", "device"): "all",
        # The margin stayed, even if a model could not be loaded because of it.
        ("memory", "margin"): "1GiB",
        ("list_aliases",): False,
        ("keys", "strict_modes"): False,
        # Every inference key could change how long a model stays, and what is in slots.
        ("keys", "rights"): ["ttl", "slots"],
        # llama-server fetched whatever URL a request named.
        ("allow_media_urls",): True,
        # A client could have any number of requests open.
        ("limits", "max_in_flight"): 0,
        # All bodies together could take any amount of memory.
        ("limits", "body_memory"): "1TiB",
        # Now embedding models and rerankers have a ubatch as long as their context.
        ("defaults", "args", "ubatch-size"): 512,
        # lswap did not check whether other programs hang.
        (PROGRAMS, "liveness"): "never",
        # lswap did not check which process holds their ports.
        (PROGRAMS, "served_by"): "anyone",
    },
    "0.2": {
        ("defaults", "fit"): "exact",
        ("defaults", "device"): "all",
        ("memory", "margin"): "1GiB",
    },
}


def with_old_defaults(
    root: Table, defaults: dict[str, dict[tuple[str, ...], Any]] = OLD_DEFAULTS
) -> Table:
    """Return the tree of a file, with the defaults of its `compat` written into it.

    A key that the file sets is left as it is. So is a file without `compat`, or with an unknown
    release there, which is reported when the key is read.
    """
    entry = root.entries.get("compat")
    if entry is None or not isinstance(entry.value, Scalar):
        return root
    for place, value in defaults.get(entry.value.text, {}).items():
        node = _node(value, entry.line)
        if place[0] == PROGRAMS:
            root = _with_programs(root, place[1:], node, entry.line)
        else:
            root = _with(root, place, node, entry.line)
    return root


def _with_programs(root: Table, place: tuple[str, ...], node: Node, line: int) -> Table:
    models = root.entries.get("models")
    if models is None or not isinstance(models.value, Table):
        return root
    filled = {
        id: Entry(own.line, _with(own.value, place, node, line))
        if isinstance(own.value, Table) and "cmd" in own.value.entries
        else own
        for id, own in models.value.entries.items()
    }
    return _put(root, "models", Entry(models.line, Table(models.value.line, filled)))


def _with(table: Table, place: tuple[str, ...], node: Node, line: int) -> Table:
    """Return the table with a value at a place below it, unless there is one."""
    name, *rest = place
    found = table.entries.get(name)
    if not rest:
        is_set = any(name in (key, long_name(key)) for key in table.entries)
        return table if is_set else _put(table, name, Entry(line, node))
    inner = found.value if found is not None else Table(line, {})
    if isinstance(inner, Scalar) and inner.value is None and inner.plain:
        inner = Table(line, {})  # a section whose lines are all commented out
    if not isinstance(inner, Table):
        return table  # a mistake, which is reported when the section is read
    filled = _with(inner, tuple(rest), node, line)
    return _put(table, name, Entry(found.line if found is not None else line, filled))


def _put(table: Table, name: str, entry: Entry) -> Table:
    return Table(table.line, table.entries | {name: entry})


def _node(value: Any, line: int) -> Node:
    if isinstance(value, dict):
        return Table(line, {name: Entry(line, _node(each, line)) for name, each in value.items()})
    if isinstance(value, list):
        return Listing(line, tuple(_node(each, line) for each in value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return Scalar(line, text, value)


def _read(node: Node, _: object) -> str:
    text = node.text if isinstance(node, Scalar) else ""
    if text not in OLD_DEFAULTS:
        known = ", ".join(OLD_DEFAULTS)
        raise Invalid(node, f"{text!r} is not an earlier release of lswap", f"write {known}")
    return text


COMPAT: Final = Form(
    _read, {"enum": [*OLD_DEFAULTS, *(float(version) for version in OLD_DEFAULTS)]}
)
