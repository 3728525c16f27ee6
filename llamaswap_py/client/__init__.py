"""The client of a running lswap, for its commands and its dashboard.

`calls` describes each request and what it answers (`answers`). `remote` sends them, in a thread or
on an event loop.
"""
