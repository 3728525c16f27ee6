"""The demonstration, and the tiny models that it writes. Serving needs none of it."""
