"""Measures what the package costs: `python -m benchmarks.bench`."""
