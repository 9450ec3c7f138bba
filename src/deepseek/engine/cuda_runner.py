"""Runs steps on a GPU without waiting for them.

A step's inputs are packed into one array and copied once, from pinned memory. Steps that only
decode are replayed from CUDA graphs, captured at the start for a few batch sizes (buckets); others
run eagerly. The drawn tokens stay on the device for the next step and are copied back beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from deepseek.engine.adapters import AdapterSet
from deepseek.engine.base import BeforePiece
from deepseek.engine.batch_scheduler import Part
from deepseek.engine.graph_capture import captured, whole_device
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.models.base import Decoder
from deepseek.engine.packed_inputs import InputLayout
from deepseek.engine.parked_weights import ParkedWeights
from deepseek.engine.runner import PendingStep, awaited_tokens
from deepseek.engine.sampling import Draw, draw, is_plain_greedy
from deepseek.engine.step_inputs import StepInputs, build_inputs

_NUM_STAGING = 3
"""One step is prepared while another runs; the third's copy may still be queued."""


class CudaRunner:
    """See `deepseek.engine.runner.Runner`."""

    def __init__(
        self,
        decoder: Decoder,
        storage: KVStorage,
        *,
        eos_token_ids: tuple[int, ...],
        max_running: int,
        max_model_len: int,
        adapters: AdapterSet,
        is_asynchronous: bool,
        weights: ParkedWeights | None = None,
    ) -> None:
        """`weights`: the decoder's, where they and `storage` may leave the device."""
        self.is_asynchronous = is_asynchronous
        self._decoder = decoder
        self._storage = storage
        self._eos_token_ids = eos_token_ids
        self._device = storage.layers[0].keys.device
        self._max_blocks = -(-max_model_len // storage.block_tokens)
        self._buckets = decode_buckets(max_running)
        self._last_tokens = torch.zeros(self._buckets[-1], dtype=torch.long, device=self._device)
        """The tokens of the step started last, by due row."""
        self._staging = [_Staging(self._device) for _ in range(_NUM_STAGING)]
        self._num_steps = 0
        self._adapters = adapters
        self._graphs: dict[tuple[int, bool], _DecodeGraph] = {}
        """By bucket, and whether rows may have adapters."""
        self._adapters_version = adapters.version
        self._pool: tuple[int, int] | None = None
        self._weights = weights

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every bucket, the largest first, so that the others fit into its memory."""
        for bucket in reversed(self._buckets):
            self._graph(bucket, has_adapters=False)

    @torch.inference_mode()
    def run(self, parts: Sequence[Part], *, previous: PendingStep | None) -> "RunningStep":
        """Start the step; returns before it has run."""
        inputs = build_inputs(
            parts, block_tokens=self._storage.block_tokens, previous=awaited_tokens(previous)
        )
        num_due = len(inputs.due_rows)
        is_decoding = inputs.num_rows == len(parts) == num_due <= self._buckets[-1]
        logits = self._replay(inputs) if is_decoding else self._run_eagerly(inputs)
        if is_decoding and all(is_plain_greedy(part.sequence) for part in parts):
            drawn = Draw(self._last_tokens[:num_due], {})  # the graph has drawn them
        else:
            drawn = draw(logits[:num_due], parts, eos_token_ids=self._eos_token_ids)
            # More due rows than sequences come from drafts alone, and those are never awaited.
            kept = drawn.tokens[: len(self._last_tokens)]
            self._last_tokens[: len(kept)] = kept
        return RunningStep(parts, drawn)

    @property
    def can_park(self) -> bool:
        """Whether the model may leave the device and come back."""
        return self._weights is not None and self._weights.has_host_copy

    def park(self) -> None:
        """Give back the memory of weights and attention state; graphs stay, their addresses too."""
        if self._weights is not None:
            self._weights.park()
            self._storage.release()

    def wake(self, before_piece: BeforePiece) -> None:
        """Undo `park`; raises `torch.OutOfMemoryError` and what `before_piece` raises."""
        if self._weights is None:
            return
        try:
            self._storage.acquire()
            self._weights.wake(before_piece)
        except BaseException:
            with whole_device(self._device):
                self._storage.release()
            raise

    def drop_host_copy(self) -> None:
        """Give back the host's memory: the model stays where it is."""
        if self._weights is not None:
            self._weights.drop_host_copy()

    def close(self) -> None:
        """Give back graphs, weights and state."""
        with whole_device(self._device):
            self._graphs.clear()
            # Memory that torch has not allocated is not freed with its tensors.
            if self._weights is not None:
                self._weights.close()
            self._storage.close()
            del self._decoder, self._storage
            torch.cuda.empty_cache()

    def _run_eagerly(self, inputs: StepInputs) -> torch.Tensor:
        layout = InputLayout.of(inputs)
        batch, due = layout.unpack(self._stage(layout, inputs), self._last_tokens)
        return self._decoder.forward(batch, self._storage.layers, rows=due)

    def _replay(self, inputs: StepInputs) -> torch.Tensor:
        bucket = next(size for size in self._buckets if size >= inputs.num_rows)
        decode = self._graph(bucket, has_adapters=inputs.adapters is not None)
        decode.inputs.copy_(self._stage(decode.layout, inputs))
        decode.graph.replay()
        return decode.logits

    def _stage(self, layout: InputLayout, inputs: StepInputs) -> torch.Tensor:
        self._num_steps += 1
        return self._staging[self._num_steps % _NUM_STAGING].to_device(layout, inputs)

    def _graph(self, bucket: int, *, has_adapters: bool) -> "_DecodeGraph":
        if self._adapters.version != self._adapters_version:
            # Graphs with adapters hold matrices that are gone; they are captured when needed.
            torch.cuda.synchronize(self._device)
            self._graphs = {key: graph for key, graph in self._graphs.items() if not key[1]}
            self._adapters_version = self._adapters.version
        key = (bucket, has_adapters)
        if key not in self._graphs:
            self._graphs[key] = self._capture(bucket, has_adapters=has_adapters)
        return self._graphs[key]

    def _capture(self, bucket: int, *, has_adapters: bool) -> "_DecodeGraph":
        layout = replace(
            InputLayout.of_decodes(
                bucket, max_blocks=self._max_blocks, block_tokens=self._storage.block_tokens
            ),
            has_adapters=has_adapters,
        )
        inputs = torch.zeros(layout.size, dtype=torch.int32, device=self._device)
        self._stage_padding(layout, inputs)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # kernels compile and libraries allocate before capture
            self._decode(layout, inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with captured(graph, pool=self._pool):
            logits = self._decode(layout, inputs)
        self._pool = self._pool or graph.pool()
        return _DecodeGraph(graph, layout, inputs, logits)

    def _stage_padding(self, layout: InputLayout, inputs: torch.Tensor) -> None:
        """Make every sequence padding: the rehearsal before a capture must store nothing."""
        host = torch.empty(layout.size, dtype=torch.int32)
        layout.pack(StepInputs.empty(), host.numpy())
        inputs.copy_(host)

    def _decode(self, layout: InputLayout, inputs: torch.Tensor) -> torch.Tensor:
        batch, _ = layout.unpack(inputs, self._last_tokens)
        logits = self._decoder.forward(batch, self._storage.layers, rows=None)
        self._last_tokens[: layout.num_rows] = logits.argmax(dim=-1)
        return logits


class RunningStep:
    """A step whose tokens are on their way to the host."""

    def __init__(self, parts: Sequence[Part], drawn: Draw) -> None:
        """Queue the copy; `drawn.tokens` may be overwritten by later steps, its copy may not."""
        self.parts = parts
        self._logprobs = drawn.logprobs
        self._host = torch.empty(drawn.tokens.shape, dtype=torch.long, pin_memory=True)
        self._host.copy_(drawn.tokens, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def wait(self) -> tuple[list[int], dict[int, torch.Tensor]]:
        """Wait for the step and return its tokens."""
        self._copied.synchronize()
        return self._host.tolist(), self._logprobs


@dataclass(frozen=True, slots=True)
class _DecodeGraph:
    graph: torch.cuda.CUDAGraph
    layout: InputLayout
    inputs: torch.Tensor
    logits: torch.Tensor


class _Staging:
    """Pinned memory that grows to the largest step, and when its last copy was done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.int32)
        self._copied: torch.cuda.Event | None = None

    def to_device(self, layout: InputLayout, inputs: StepInputs) -> torch.Tensor:
        """Return the packed inputs on the device; the copy is queued, not awaited."""
        if self._copied is not None:
            self._copied.synchronize()
        if self._memory.numel() < layout.size:
            self._memory = torch.empty(layout.size, dtype=torch.int32, pin_memory=True)
        part = self._memory[: layout.size]
        layout.pack(inputs, part.numpy())
        on_device = part.to(self._device, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return on_device


def decode_buckets(max_running: int) -> list[int]:
    """Return the batch sizes to capture: close together where a padded row costs most."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, max_running, 64)]
    return [size for size in sizes if size < max_running] + [max_running]
