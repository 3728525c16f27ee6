"""The HTTP API: routes, model names, errors. It is built on the supervisor and the proxy."""

from __future__ import annotations

from llamaswap_py.api.app import App

__all__ = ["App"]
