"""Benchmarks: side by side with peers, in interleaved rounds, printed as ratios."""
