"""What `benchmarks/engine_gpu.py` measures, one module each."""
