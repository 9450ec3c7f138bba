"""What `benchmarks/headline.py` measures."""
