"""The plug-in point of the models: fused operations, implemented once per kind of device.

`reference` is plain torch and runs anywhere; `native` is C++ for CPUs; `triton` is for GPUs.
One contract suite holds all of them to the reference (tests/engine/ops).
"""

from typing import Protocol

import torch

from deepseek.engine.batch import LayerKV, StepBatch


class Ops(Protocol):
    """Operations of one device. Inputs may be float32 or bfloat16 (float16 on GPUs); sums inside an
    operation are float32. No operation synchronises with the host, so that a GPU's can be captured
    in a graph; inputs are not changed except where it is said.
    """

    name: str

    def rms_norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return RMSNorm (arXiv:1910.07467) over the last dimension of (rows, width)."""
        ...

    def add_rms_norm(
        self, states: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add `states` to `residual` in place, return the norm of the sum; both (rows, width)."""
        ...

    def gated_silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, (rows, width), for (rows, 2 * width) that holds gate, then up."""
        ...

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        batch: StepBatch,
        kv: LayerKV,
        *,
        num_heads: int,
        head_norms: tuple[torch.Tensor, torch.Tensor] | None = None,
        eps: float = 0.0,
    ) -> torch.Tensor:
        """Rotate queries and keys, store keys and values in `kv`, return the queries.

        qkv: (rows, (heads + 2 * kv_heads) * dim): heads of queries, keys, values. rotary: float32
        (positions, dim): cosines of dim / 2 angles, then their sines (RoPE in the halves
        convention, arXiv:2104.09864). head_norms: weights (dim,) of an RMSNorm over each query and
        each key head before the rotation (Qwen3). Returns (rows, heads, dim), contiguous.
        """
        ...

    def store(
        self, keys: torch.Tensor, values: torch.Tensor | None, batch: StepBatch, kv: LayerKV
    ) -> None:
        """Store (rows, kv_heads, key_dim) keys and (rows, kv_heads, value_dim) values in `kv`.

        Rows may be strided; the last dimension is contiguous. None: the values are in the keys.
        """
        ...

    def attend(
        self, queries: torch.Tensor, batch: StepBatch, kv: LayerKV, *, scale: float
    ) -> torch.Tensor:
        """Return causal attention of contiguous (rows, heads, key_dim) over the stored state.

        Consecutive heads / kv_heads query heads share one kv head. Returns (rows, heads *
        value_dim) in the queries' type.
        """
        ...

    def attend_packed(
        self, qkv: torch.Tensor, starts: torch.Tensor, max_len: int, *, num_heads: int
    ) -> torch.Tensor:
        """Return full (two-way) attention inside each of several packed sequences.

        qkv: (tokens, 3 * heads * dim): queries, keys, values. starts: (sequences + 1,) int32, first
        token of each sequence, then the number of tokens. Scale is dim ** -0.5. Returns (tokens,
        heads * dim).
        """
        ...
