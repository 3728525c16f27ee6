"""What URLs mean: routes, model names, errors. It asks the supervisor and uses the proxy."""

from __future__ import annotations

from llamaswap_py.api.app import App

__all__ = ["App"]
