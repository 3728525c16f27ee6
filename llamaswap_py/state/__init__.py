"""What is kept on disk between runs: learned footprints and load times. Safe to delete."""

from __future__ import annotations

from llamaswap_py.state.folder import RecordFolder
from llamaswap_py.state.learned import Facts, LearnedFacts
from llamaswap_py.state.places import estimates_folder, learned_folder

__all__ = ["Facts", "LearnedFacts", "RecordFolder", "estimates_folder", "learned_folder"]
