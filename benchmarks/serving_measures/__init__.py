"""The measures of the benchmark `serving`, one module each; `benchmarks/serving.py` runs them."""
