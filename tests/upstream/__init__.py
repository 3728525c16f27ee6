"""llama.cpp's own server tests, run plain and through lswap: `make compat`.

The tests come from the engine's source tree and are never kept here. What they fetch from Hugging
Face is replaced by tiny models in a cache of the same layout.
"""
