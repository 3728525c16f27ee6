"""The simulator: plays traces of requests under virtual time, with lswap's policy or a peer's."""
