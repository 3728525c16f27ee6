"""Environment variables that llama.cpp reads: which a child must not inherit. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTION_PREFIX: Final = "LLAMA_ARG_"
"""`LLAMA_ARG_CTX_SIZE` sets the option `--ctx-size`."""
RESERVED: Final[dict[str, str]] = {
    OPTION_PREFIX: "use `args`: options from the environment would bypass the checks",
    "LLAMA_API_KEY": "children are private and need no key",
    "LLAMA_SERVER_": "lswap sets it",
    "XDG_CONFIG_HOME": "lswap sets it, so that no other configuration is read",
}
"""How variables begin that a preset cannot set, and why."""
CHILD_MODE: Final[dict[str, str]] = {"LLAMA_SERVER_ROUTER_PORT": "1"}
"""What makes a llama-server that has child mode speak it (tools/server/server-models.cpp)."""
_NO_CONFIG: Final = "/dev/null/empty"  # a folder that nobody can ever fill


def clean_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what would change a child behind its preset's back.

    Left out are options (`LLAMA_ARG_*`), keys, variables of llama-server's router, and the user's
    own config.ini, which llama-server looks for in `XDG_CONFIG_HOME`.
    """
    kept = {name: value for name, value in base.items() if not name.startswith(tuple(RESERVED))}
    return {**kept, "XDG_CONFIG_HOME": _NO_CONFIG}
