"""lswap's own API below `/lswap/v1`: state, control, events, requests, reservations."""
