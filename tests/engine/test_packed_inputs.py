"""Packing and unpacking a step's inputs: nothing changes but the copy."""

import numpy as np
import torch

from deepseek.core.precision import Precision
from deepseek.engine.batch import StepBatch
from deepseek.engine.packed_inputs import InputLayout
from deepseek.engine.runner import to_batch
from deepseek.engine.step_inputs import StepInputs


def ints(*values: int) -> "np.typing.NDArray[np.int32]":
    return np.array(values, dtype=np.int32)


def decodes() -> StepInputs:
    """Two sequences of 5 and 9 tokens; the second one's last token is awaited."""
    return StepInputs(
        token_ids=ints(7, 0),
        positions=ints(4, 8),
        kv_rows=ints(12, 32),
        query_starts=ints(0, 1, 2),
        context_lens=ints(5, 9),
        block_tables=np.array([[1, 0, 0], [2, 3, 4]], dtype=np.int32),
        due_rows=ints(0, 1),
        awaited=ints(-1, 1),
        adapters=ints(0, 2),
        precision=Precision.INT8,
        num_decodes=2,
        max_query_rows=1,
        max_context_len=9,
    )


def unpacked(layout: InputLayout, inputs: StepInputs) -> tuple[StepBatch, torch.Tensor]:
    flat = np.full(layout.size, 99, dtype=np.int32)  # what an earlier step left
    layout.pack(inputs, flat)
    return layout.unpack(torch.from_numpy(flat), torch.tensor([50, 60, 70]))


def test_an_exact_layout_gives_the_inputs_back() -> None:
    inputs = decodes()
    batch, due = unpacked(InputLayout.of(inputs), inputs)
    expected = to_batch(inputs)
    for field in ("positions", "kv_rows", "query_starts", "context_lens", "block_tables"):
        assert torch.equal(getattr(batch, field), getattr(expected, field)), field
    assert batch.token_ids.tolist() == [7, 60]
    assert batch.choices.adapters is not None
    assert batch.choices.adapters.tolist() == [0, 2]
    assert due.tolist() == [0, 1]


def test_a_larger_layout_adds_sequences_that_are_stored_nowhere() -> None:
    layout = InputLayout.of_decodes(4, max_blocks=5, block_tokens=4)
    batch, _ = unpacked(layout, decodes())
    assert batch.token_ids.tolist() == [7, 60, 0, 0]
    assert batch.kv_rows.tolist() == [12, 32, -1, -1]
    assert batch.context_lens.tolist() == [5, 9, 0, 0]
    assert batch.query_starts.tolist() == [0, 1, 2, 3, 4]
    assert batch.block_tables.tolist() == [[1, 0, 0, 0, 0], [2, 3, 4, 0, 0], [0] * 5, [0] * 5]
    assert batch.choices.adapters is None
    assert batch.max_context_len == 20


def test_a_step_of_padding_alone_stores_nothing() -> None:
    layout = InputLayout.of_decodes(3, max_blocks=2, block_tokens=4)
    batch, _ = unpacked(layout, StepInputs.empty())
    assert batch.kv_rows.tolist() == [-1] * 3
    assert batch.context_lens.tolist() == [0] * 3
    assert batch.query_starts.tolist() == [0, 1, 2, 3]
