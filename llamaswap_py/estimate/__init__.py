"""Estimates the memory a preset will take: as declared, measured, by a dry run, or by formulas."""

from __future__ import annotations

from llamaswap_py.estimate.estimator import Estimator
from llamaswap_py.estimate.types import Estimate, Part, Source, surprise
from llamaswap_py.estimate.wanted import Wanted

__all__ = ["Estimate", "Estimator", "Part", "Source", "Wanted", "surprise"]
