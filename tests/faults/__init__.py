"""Faults injected into a real `lswap up` under load."""
