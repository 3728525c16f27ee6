"""Environment variables of llama-server: those that set options, and those to keep away. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.options import long_name, plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.llamacpp.options import OptionTable

OPTION_PREFIX: Final = "LLAMA_ARG_"
"""`LLAMA_ARG_CTX_SIZE` sets the option `--ctx-size`."""
RESERVED: Final[dict[str, str]] = {
    OPTION_PREFIX: "use `args`: options from the environment would bypass the checks",
    "LLAMA_API_KEY": "children are private and need no key",
    "LLAMA_SERVER_": "lswap sets it",
    "XDG_CONFIG_HOME": "lswap sets it, so that no other configuration is read",
}
"""Beginnings of the variables that a preset cannot set, and why."""
CHILD_MODE: Final[dict[str, str]] = {"LLAMA_SERVER_ROUTER_PORT": "1"}
"""The variable that turns child mode on, if a llama-server has it (server-models.cpp)."""
_NO_BACKTRACE: Final[dict[str, str]] = {"GGML_NO_BACKTRACE": "1"}
"""Without it, a llama.cpp program that aborts starts gdb on itself, if there is one (ggml.c)."""
_NO_CONFIG: Final = "/dev/null/empty"  # a folder that cannot exist


def clean_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that would change a child unnoticed.

    Left out are options (`LLAMA_ARG_*`), keys, variables of llama-server's router, and the user's
    own config.ini, which llama-server looks for in `XDG_CONFIG_HOME`. A program that aborts writes
    its reason and no backtrace.
    """
    kept = {name: value for name, value in base.items() if not name.startswith(tuple(RESERVED))}
    return {**kept, **_NO_BACKTRACE, "XDG_CONFIG_HOME": _NO_CONFIG}


# Without an engine to ask: the variables that are not called as their options are.
_NAMES: Final = {
    "batch": "batch-size",
    "ubatch": "ubatch-size",
    "n-parallel": "parallel",
    "rope-scaling-type": "rope-scaling",
    "spec-draft-cache-type-k": "cache-type-k-draft",
    "spec-draft-cache-type-v": "cache-type-v-draft",
    "checkpoint-min-spacing-nt": "checkpoint-min-step",
    "static-path": "path",
    "endpoint-metrics": "metrics",
    "endpoint-props": "props",
    "endpoint-slots": "slots",
    "think": "reasoning-format",
    "think-budget": "reasoning-budget",
    "think-budget-message": "reasoning-budget-message",
}


def option_of(variable: str, table: OptionTable | None = None) -> tuple[str, bool]:
    """Return the option that a variable sets, without dashes; False if it switches it off."""
    if table is not None and (found := table.find_env(variable)) is not None:
        return plain_name(found[0].name), found[1]
    name = variable.removeprefix(OPTION_PREFIX).lower().replace("_", "-")
    positive = not name.startswith("no-") or name == "no-host"
    name = name if positive else name[3:]
    return long_name(_NAMES.get(name, name)), positive
