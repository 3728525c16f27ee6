"""The demonstration, the tiny models that it writes, and a trial of an engine with one of them.

Serving needs none of it.
"""
