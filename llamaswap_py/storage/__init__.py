"""What lswap keeps on disk: learned footprints, load times, conversations. Safe to delete."""

from __future__ import annotations

from llamaswap_py.storage.learned import Facts, LearnedFacts
from llamaswap_py.storage.record_folder import RecordFolder, estimates_folder, learned_folder

__all__ = ["Facts", "LearnedFacts", "RecordFolder", "estimates_folder", "learned_folder"]
