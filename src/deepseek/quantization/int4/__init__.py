"""Algorithms that choose 4-bit weights: rounding, half-quadratic, GPTQ."""
