"""Check a release's tag: it has to be the package's version, which has a section in CHANGELOG.md.

python scripts/check_release.py v0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from llamaswap_py import __version__

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def faults(tag: str, version: str, changelog: str) -> list[str]:
    """Return what keeps `tag` from being released, each with its remedy."""
    found = []
    if tag != f"v{version}":
        found.append(
            f"the tag is {tag or 'missing'}, and llamaswap_py/__init__.py says {version}"
            f" - tag the commit v{version}, or change the version"
        )
    dated = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    if not re.search(dated, changelog, re.MULTILINE):
        found.append(
            f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD`"
            " - move what is under Unreleased there"
        )
    return found


def main() -> None:
    """Exit with what is wrong, if anything is."""
    tag = sys.argv[1] if len(sys.argv) > 1 else ""
    found = faults(tag, __version__, CHANGELOG.read_text(encoding="utf-8"))
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
