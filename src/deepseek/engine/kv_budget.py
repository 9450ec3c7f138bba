"""How much of a GPU's memory the KV cache may take: what is left beside everything else."""

import numpy as np
import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.precision import Precision
from deepseek.engine.batch import LayerKV
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.models.base import Decoder
from deepseek.engine.packed_inputs import InputLayout
from deepseek.engine.step_inputs import StepInputs


def profile_kv_bytes(
    decoder: Decoder,
    *,
    device: str,
    max_step_tokens: int,
    max_running: int,
    block_tokens: int,
    memory_utilization: float,
) -> int:
    """Return the bytes left for attention state after the largest step has been run once.

    The weights must be loaded, and nothing may be loaded later: of the device's memory
    `memory_utilization` may be used in all. Raises `ConfigurationError` where nothing is left.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    num_blocks = -(-max_step_tokens // block_tokens)
    storage = KVStorage(
        decoder.kv_shape, num_blocks=num_blocks, block_tokens=block_tokens, device=device
    )
    own = torch.cuda.memory_allocated(device) - before
    _run_largest_step(decoder, storage.layers, num_rows=max_step_tokens, num_due=max_running)
    activations = torch.cuda.max_memory_allocated(device) - before - own
    del storage
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    left = int(total * memory_utilization) - (total - free) - activations
    if left <= 0:
        raise ConfigurationError(
            f"no memory is left for attention state: the device has {total / 2**30:.1f} GiB, "
            f"{(total - free) / 2**30:.1f} are taken, a step needs {activations / 2**30:.1f}; "
            "lower `max_step_tokens`, "
            "raise `memory_utilization` or move a model to another pool"
        )
    return left


@torch.inference_mode()
def _run_largest_step(
    decoder: Decoder, layers: list[LayerKV], *, num_rows: int, num_due: int
) -> None:
    """Run one prompt chunk of `num_rows` tokens with `num_due` of its rows' logits."""
    device, block_tokens = layers[0].keys.device, layers[0].block_tokens
    num_rows = min(num_rows, decoder.max_positions)
    rows = np.arange(num_rows, dtype=np.int32)
    inputs = StepInputs(
        token_ids=rows % decoder.vocab_size,
        positions=rows,
        kv_rows=rows,
        query_starts=np.array([0, num_rows], dtype=np.int32),
        context_lens=np.array([num_rows], dtype=np.int32),
        block_tables=np.arange(-(-num_rows // block_tokens), dtype=np.int32)[None],
        due_rows=rows[-num_due:],
        awaited=None,
        adapters=None,
        precision=Precision.INT8,
        num_decodes=int(num_rows == 1),
        max_query_rows=num_rows,
        max_context_len=num_rows,
    )
    layout = InputLayout.of(inputs)
    host = torch.empty(layout.size, dtype=torch.int32)
    layout.pack(inputs, host.numpy())
    last_tokens = torch.zeros(1, dtype=torch.long, device=device)
    batch, due = layout.unpack(host.to(device), last_tokens)
    decoder.forward(batch, layers, rows=due).float().argmax(dim=-1)
    torch.cuda.synchronize(device)
