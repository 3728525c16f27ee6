"""Write the tables of docs/configuration.md anew, from the types that the file is read with."""

from __future__ import annotations

from pathlib import Path

from llamaswap_py.config.reference import with_reference

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"


if __name__ == "__main__":
    PAGE.write_text(with_reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
