"""What a child sees of lswap's own environment, and what it does not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.children.events import ChildSpec

MARK: Final = "LSWAP_CHILD"
"""The variable by which the next start finds what a child without a cgroup has left."""
_SCRUBBED: Final = ("LLAMA_ARG_", "LLAMA_SERVER_")
_NO_CONFIG: Final = os.path.join(os.devnull, "empty")  # a folder that nobody can ever fill


def child_env(base: Mapping[str, str], spec: ChildSpec) -> dict[str, str]:
    """Return the environment of a child.

    Without what would change it behind the preset's back: `LLAMA_ARG_*`, `LLAMA_API_KEY`,
    `LLAMA_SERVER_*`, and the user's own config.ini. What the preset's own `env` says wins. A
    program of the user's gets all that we have.
    """
    mark = {MARK: spec.mark} if spec.mark else {}
    if spec.program is not None:
        return {**base, **mark, **spec.env}
    env = {
        name: value
        for name, value in base.items()
        if not name.startswith(_SCRUBBED) and name != "LLAMA_API_KEY"
    }
    env["XDG_CONFIG_HOME"] = _NO_CONFIG
    if spec.child_mode:
        env["LLAMA_SERVER_ROUTER_PORT"] = "1"
    return {**env, **mark, **spec.env}
