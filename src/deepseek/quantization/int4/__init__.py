"""Algorithms that choose 4-bit weights: rounding, searched scales, GPTQ."""
