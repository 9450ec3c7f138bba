"""`Ops` for GPUs: which kernel does what, and how a step's rows are shared out between kernels."""

import torch

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.ops.triton import chunk_attention, dense_attention, elementwise
from deepseek.engine.ops.triton.launching import Launch
from deepseek.engine.ops.triton.split_attention import MAX_ROWS, SplitAttention


class TritonOps:
    """See `deepseek.engine.ops.base.Ops`.

    Nothing here reads a tensor on the host. A step whose sequences all bring one row may be
    captured in a graph: it depends on `StepBatch`'s tensors and on the number of its sequences
    alone. One stream at a time may use an instance.
    """

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        """Prepare for one device; without a GPU (for tests) kernels run in Triton's interpreter."""
        self._launch = Launch(device)
        self._split = SplitAttention(self._launch, device)

    def rms_norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return elementwise.rms_norm(self._launch, states, weight=weight, eps=eps)

    def add_rms_norm(
        self, states: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return elementwise.rms_norm(self._launch, states, residual=residual, weight=weight, eps=eps)

    def gated_silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        return elementwise.gated_silu(self._launch, gate_up)

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
        return elementwise.rotate_and_store(
            self._launch,
            qkv,
            rotary=rotary,
            batch=batch,
            kv=kv,
            num_heads=num_heads,
            head_norms=head_norms,
            eps=eps,
        )

    def store(
        self, keys: torch.Tensor, values: torch.Tensor | None, batch: StepBatch, kv: LayerKV
    ) -> None:
        elementwise.store(self._launch, keys, target=kv.keys, batch=batch)
        if values is not None:
            elementwise.store(self._launch, values, target=kv.values, batch=batch)

    def attend(
        self, queries: torch.Tensor, batch: StepBatch, kv: LayerKV, *, scale: float
    ) -> torch.Tensor:
        if self._launch.is_hopper and dense_attention.takes(queries, batch, kv):
            return dense_attention.attend_prompt(
                self._launch, queries, batch=batch, kv=kv, scale=scale
            ).flatten(1)
        num_rows, num_heads, _ = queries.shape
        shape = (num_rows, num_heads, kv.values.shape[3])
        out = torch.empty(shape, dtype=queries.dtype, device=queries.device)
        num_decodes, num_sequences = batch.num_decodes, batch.context_lens.shape[0]
        if num_decodes:
            self._split.attend(
                queries,
                out,
                kv=kv,
                query_starts=batch.query_starts,
                context_lens=batch.context_lens[:num_decodes],
                block_tables=batch.block_tables,
                max_rows=1,
                total_rows=num_decodes if num_sequences > num_decodes else num_rows,
                scale=scale,
            )
        if num_sequences > num_decodes:
            self._attend_chunks(queries, out, batch=batch, kv=kv, scale=scale)
        return out.flatten(1)

    def attend_packed(
        self, qkv: torch.Tensor, starts: torch.Tensor, max_len: int, *, num_heads: int
    ) -> torch.Tensor:
        return chunk_attention.attend_packed(
            self._launch, qkv, starts=starts, max_len=max_len, num_heads=num_heads
        )

    def _attend_chunks(
        self,
        queries: torch.Tensor,
        out: torch.Tensor,
        *,
        batch: StepBatch,
        kv: LayerKV,
        scale: float,
    ) -> None:
        chunks = slice(batch.num_decodes, None)
        query_starts = batch.query_starts[chunks]
        context_lens, block_tables = batch.context_lens[chunks], batch.block_tables[chunks]
        group = queries.shape[1] // kv.keys.shape[1]
        if batch.max_query_rows * group <= MAX_ROWS:
            self._split.attend(
                queries,
                out,
                kv=kv,
                query_starts=query_starts,
                context_lens=context_lens,
                block_tables=block_tables,
                max_rows=batch.max_query_rows,
                total_rows=queries.shape[0],
                scale=scale,
            )
            return
        chunk_attention.attend_chunks(
            self._launch,
            queries,
            out,
            kv=kv,
            query_starts=query_starts,
            context_lens=context_lens,
            block_tables=block_tables,
            max_rows=batch.max_query_rows,
            scale=scale,
        )
