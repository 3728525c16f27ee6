"""The simulator: any policy on any trace, under virtual time, beside the peers' policies."""
