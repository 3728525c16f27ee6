"""What is kept on disk between runs: learned footprints and load times. Safe to delete."""

from __future__ import annotations

from llamaswap_py.storage.learned import Facts, LearnedFacts
from llamaswap_py.storage.record_folder import RecordFolder, estimates_folder, learned_folder

__all__ = ["Facts", "LearnedFacts", "RecordFolder", "estimates_folder", "learned_folder"]
