"""What `benchmarks/coldstart.py` measures."""
