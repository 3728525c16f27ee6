"""llama-server binaries: find, probe, build and install them, and say what is missing.

`binaries.locate_engine(spec)` is what a supervisor needs; the rest serves `lswap engine`.
"""
