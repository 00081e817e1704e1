"""Benchmarks of fxprune; `python -m benchmarks` runs them all, each module alone runs by its own name."""
