"""Turns other programs' files into a configuration of lswap, and lists the rest."""
