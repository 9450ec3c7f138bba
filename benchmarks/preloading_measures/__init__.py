"""What `benchmarks/preloading.py` measures."""
