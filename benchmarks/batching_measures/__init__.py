"""What `benchmarks/batching.py` measures."""
