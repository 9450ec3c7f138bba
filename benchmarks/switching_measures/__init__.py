"""What the benchmark `switching` measures."""
