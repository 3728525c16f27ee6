"""`python -m llamaswap_py.demo` is `make demo`."""

from __future__ import annotations

import sys

from llamaswap_py.demo.run import main

sys.exit(main())
