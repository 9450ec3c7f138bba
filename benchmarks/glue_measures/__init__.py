"""Measures of `benchmarks/glue.py`: a classifier trained on SST-2, and what precision costs it."""
