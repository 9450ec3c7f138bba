"""Measures of `precision`: kernels beside others, and what precision costs in quality."""
