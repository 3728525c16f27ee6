"""`python -m llamaswap_py` is `lswap`."""

from __future__ import annotations

from llamaswap_py.cli.app import main

main()
