"""The environment variables that a child inherits from lswap, and those it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.env_variables import CHILD_MODE, clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.children.child_events import ChildSpec

MARK: Final = "LSWAP_CHILD"
"""A variable in each child's environment: by it the next start of lswap finds processes that a
child without a cgroup has left."""


def child_env(base: Mapping[str, str], spec: ChildSpec) -> dict[str, str]:
    """Return the environment of a child.

    A llama-server gets what clean_environment() leaves of lswap's own. A program of the user's gets
    all of it. The preset's `env` overrides both.
    """
    mark = {MARK: spec.mark} if spec.mark else {}
    if spec.program is not None:
        return {**base, **mark, **spec.env}
    mode = CHILD_MODE if spec.child_mode else {}
    return {**clean_environment(base), **mode, **mark, **spec.env}
