"""Tiny models and a demonstration: everything that is not needed to serve."""
