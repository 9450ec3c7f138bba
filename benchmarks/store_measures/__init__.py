"""Measures of `benchmarks/store.py`."""
