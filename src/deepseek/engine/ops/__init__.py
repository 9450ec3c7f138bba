"""The fused operations that model code is written in, one module per device."""
