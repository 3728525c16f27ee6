"""The basics of lswap with four builds of llama.cpp: `make compat`.

`basics.py` has the tests; pytest does not find it by itself, so `make test` leaves it out.
"""
