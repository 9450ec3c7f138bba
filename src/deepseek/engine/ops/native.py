"""C++ kernels for CPUs: `NativeOps`, and `cpu_ops`, which chooses what this machine can run."""

import ctypes
import weakref

import torch

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.ops.base import Ops
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.native.library import TYPES, Batch, Kernels, PagedKV, load_kernels


def cpu_ops() -> Ops:
    """Return native operations where they can be built, else plain torch's."""
    kernels = load_kernels()
    return ReferenceOps() if kernels is None else NativeOps(kernels)


class NativeOps:
    """See `deepseek.engine.ops.base.Ops`: float32 and bfloat16, in as many threads as torch has.

    Queries and state may differ in type. Used from one thread at a time.
    """

    name = "native"

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._batch: StepBatch | None = None
        self._batch_view = Batch()
        self._batch_address = ctypes.addressof(self._batch_view)
        self._layouts: dict[int, _Layout] = {}

    def rms_norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows, width = states.shape
        out = torch.empty_like(states)
        self._kernels.rms_norm(
            *(states.data_ptr(), _row_stride(states), weight.data_ptr(), out.data_ptr()),
            *(rows, width, eps, TYPES[states.dtype], TYPES[weight.dtype]),
            torch.get_num_threads(),
        )
        return out

    def add_rms_norm(
        self, states: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        if states.dtype is not residual.dtype:
            raise TypeError(f"states are {states.dtype}, the residual {residual.dtype}")
        rows, width = states.shape
        out = torch.empty_like(states)
        self._kernels.add_rms_norm(
            *(states.data_ptr(), _row_stride(states)),
            *(residual.data_ptr(), _row_stride(residual), weight.data_ptr(), out.data_ptr()),
            *(rows, width, eps, TYPES[states.dtype], TYPES[weight.dtype]),
            torch.get_num_threads(),
        )
        return out

    def gated_silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        rows, width = gate_up.shape
        out = gate_up.new_empty((rows, width // 2))
        self._kernels.gated_silu(
            *(gate_up.data_ptr(), _row_stride(gate_up), out.data_ptr(), rows, width // 2),
            *(TYPES[gate_up.dtype], torch.get_num_threads()),
        )
        return out

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
        layout = self._layout(kv)
        out = qkv.new_empty((qkv.shape[0], num_heads, layout.key_dim))
        query_norm, key_norm, norm_type = None, None, 0
        if head_norms is not None:
            query_norm, key_norm = head_norms[0].data_ptr(), head_norms[1].data_ptr()
            norm_type = TYPES[head_norms[0].dtype]
        self._kernels.rotate_and_store(
            *(qkv.data_ptr(), _row_stride(qkv), rotary.data_ptr(), _row_stride(rotary)),
            *(self._view(batch), layout.address, num_heads, query_norm, key_norm, eps),
            *(out.data_ptr(), TYPES[qkv.dtype], norm_type, torch.get_num_threads()),
        )
        return out

    def store(
        self, keys: torch.Tensor, values: torch.Tensor | None, batch: StepBatch, kv: LayerKV
    ) -> None:
        value_pointer, value_strides = None, (0, 0)
        if values is not None:
            value_pointer, value_strides = values.data_ptr(), values.stride()[:2]
        self._kernels.store(
            *(keys.data_ptr(), *keys.stride()[:2], value_pointer, *value_strides),
            *(self._view(batch), self._layout(kv).address),
            *(TYPES[keys.dtype], torch.get_num_threads()),
        )

    def attend(
        self, queries: torch.Tensor, batch: StepBatch, kv: LayerKV, *, scale: float
    ) -> torch.Tensor:
        layout = self._layout(kv)
        rows, heads, _ = queries.shape
        row_stride, head_stride, _ = queries.stride()
        out = queries.new_empty((rows, heads * layout.value_dim))
        self._kernels.attend(
            *(queries.data_ptr(), row_stride, head_stride, heads),
            *(self._view(batch), layout.address, scale),
            *(out.data_ptr(), TYPES[queries.dtype], torch.get_num_threads()),
        )
        return out

    def attend_packed(
        self, qkv: torch.Tensor, starts: torch.Tensor, max_len: int, *, num_heads: int
    ) -> torch.Tensor:
        tokens, width = qkv.shape
        out = qkv.new_empty((tokens, width // 3))
        self._kernels.attend_packed(
            *(qkv.data_ptr(), _row_stride(qkv), starts.data_ptr(), starts.shape[0] - 1),
            *(num_heads, width // 3 // num_heads, out.data_ptr()),
            *(TYPES[qkv.dtype], torch.get_num_threads()),
        )
        return out

    def _view(self, batch: StepBatch) -> int:
        """Return the address of `batch`'s C view, which is made once a step, not once a layer."""
        if batch is not self._batch:
            self._batch_view.__init__(  # type: ignore[misc]
                *(batch.positions.data_ptr(), batch.kv_rows.data_ptr()),
                *(batch.query_starts.data_ptr(), batch.context_lens.data_ptr()),
                *(batch.block_tables.data_ptr(), batch.block_tables.stride(0)),
                *(batch.num_rows, batch.context_lens.shape[0]),
            )
            self._batch = batch  # keeps the tensors that the view points into
        return self._batch_address

    def _layout(self, kv: LayerKV) -> "_Layout":
        layout = self._layouts.get(id(kv.keys))
        if layout is None or layout.keys() is not kv.keys or layout.values() is not kv.values:
            layout = self._layouts[id(kv.keys)] = _Layout(kv)
            weakref.finalize(kv.keys, self._layouts.pop, id(kv.keys), None)
        return layout


class _Layout:
    """The C view of one layer's state; does not keep the state alive."""

    def __init__(self, kv: LayerKV) -> None:
        if kv.keys.dtype is not kv.values.dtype:
            raise TypeError(f"keys are {kv.keys.dtype}, values {kv.values.dtype}")
        _, num_heads, block_tokens, self.key_dim = kv.keys.shape
        self.value_dim = kv.values.shape[3]
        self.keys, self.values = weakref.ref(kv.keys), weakref.ref(kv.values)
        self._view = PagedKV(
            *(kv.keys.data_ptr(), kv.values.data_ptr()),
            *(*kv.keys.stride()[:3], *kv.values.stride()[:3]),
            *(block_tokens, num_heads, self.key_dim, self.value_dim, TYPES[kv.keys.dtype]),
        )
        self.address = ctypes.addressof(self._view)


def _row_stride(rows: torch.Tensor) -> int:
    stride, element_stride = rows.stride()
    if element_stride != 1:  # also what makes `empty_like` contiguous
        raise ValueError("the elements of a row must be contiguous")
    return stride
