"""Mixed precision: which layer computes in which number format, and the weights that allow it."""
