"""llama-server's environment variables -> the options that they set. Pure."""

from __future__ import annotations

from typing import Final

from llamaswap_py.llamacpp.env_variables import OPTION_PREFIX
from llamaswap_py.llamacpp.options import OptionTable, long_name, plain_name

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
