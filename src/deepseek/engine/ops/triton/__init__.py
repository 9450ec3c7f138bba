"""Kernels for GPUs, written in Triton. `TritonOps` is in `deepseek.engine.ops.triton.ops`."""
