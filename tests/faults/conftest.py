"""The fixture of the fault tests: the same lab as the end-to-end tests have."""

from __future__ import annotations

from tests.real.conftest import lab

__all__ = ["lab"]
