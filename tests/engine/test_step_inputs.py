"""A step's arrays, by hand and for any mixture of parts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.precision import Precision
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.engine.adapters import LoadedAdapter
from deepseek.engine.batch_scheduler import Part
from deepseek.engine.sequence import Sequence
from deepseek.engine.step_inputs import build_inputs, pad_rows

BLOCK_TOKENS = 4


def make_sequence(
    tokens: list[int],
    blocks: list[int],
    *,
    request_id: int = 1,
    adapter: int = 0,
    precision: Precision | None = None,
) -> Sequence:
    request = GenerateRequest(
        id=request_id,
        model="m",
        prompt_token_ids=tokens,
        sampling=SamplingParams(max_tokens=9),
    )
    return Sequence(
        request=request,
        tokens=tokens,
        num_prompt=len(tokens),
        blocks=blocks,
        adapter=LoadedAdapter(name="a", index=adapter, salt=b"a", projections=())
        if adapter
        else None,
        precision=precision,
    )


def test_rows_of_a_mixed_step_lie_one_after_the_other() -> None:
    decoding = make_sequence([10, 11, 12, 13, 14], [7, 2])
    guessing = make_sequence([20, 21, 22], [5, 9], request_id=2)
    prompt = make_sequence(list(range(30, 40)), [0, 1, 3], request_id=3)
    parts = [
        Part(decoding, start=4, num_rows=1, num_due=1),
        Part(guessing, start=2, num_rows=3, num_due=3, draft=(50, 51)),
        Part(prompt, start=3, num_rows=4, num_due=0),
    ]
    inputs = build_inputs(parts, block_tokens=BLOCK_TOKENS, previous={})
    assert inputs.token_ids.tolist() == [14, 22, 50, 51, 33, 34, 35, 36]
    assert inputs.positions.tolist() == [4, 2, 3, 4, 3, 4, 5, 6]
    assert inputs.kv_rows.tolist() == [8, 22, 23, 36, 3, 4, 5, 6]
    assert inputs.query_starts.tolist() == [0, 1, 4, 8]
    assert inputs.context_lens.tolist() == [5, 5, 7]
    assert inputs.block_tables.tolist() == [[7, 2, 0], [5, 9, 0], [0, 1, 3]]
    assert inputs.due_rows.tolist() == [0, 1, 2, 3]
    assert (inputs.num_decodes, inputs.max_query_rows, inputs.max_context_len) == (1, 4, 7)
    assert inputs.awaited is None
    assert inputs.adapters is None


def test_a_token_that_a_running_step_computes_is_named_by_its_place_there() -> None:
    known = make_sequence([10, 11], [0], request_id=4)
    ahead = make_sequence([20, 21, 22], [1], request_id=5)
    ahead.num_in_flight = 1
    parts = [
        Part(known, start=1, num_rows=1, num_due=1),
        Part(ahead, start=3, num_rows=1, num_due=1),
    ]
    inputs = build_inputs(parts, block_tokens=BLOCK_TOKENS, previous={5: 6})
    assert inputs.awaited is not None
    assert inputs.awaited.tolist() == [-1, 6]
    assert inputs.token_ids[0] == 11
    assert inputs.positions.tolist() == [1, 3]
    assert inputs.kv_rows.tolist() == [1, 7]


def test_the_last_chunk_of_a_prompt_yields_one_token() -> None:
    prompt = make_sequence(list(range(6)), [2, 3])
    part = Part(prompt, start=1, num_rows=5, num_due=1)
    inputs = build_inputs([part], block_tokens=BLOCK_TOKENS, previous={})
    assert inputs.due_rows.tolist() == [4]


def test_every_row_of_a_sequence_has_its_adapter() -> None:
    plain = make_sequence([1, 2], [0])
    adapted = make_sequence([3, 4, 5], [1], request_id=2, adapter=3)
    parts = [
        Part(plain, start=1, num_rows=1, num_due=1),
        Part(adapted, start=0, num_rows=3, num_due=1),
    ]
    inputs = build_inputs(parts, block_tokens=BLOCK_TOKENS, previous={})
    assert inputs.adapters is not None
    assert inputs.adapters.tolist() == [0, 3, 3, 3]


@pytest.mark.parametrize("draft", [(), (50, 51)])
def test_every_row_of_a_sequence_has_its_precision(draft: tuple[int, ...]) -> None:
    fine = make_sequence([1, 2], [0, 5], precision=Precision.INT8)
    coarse = make_sequence([3, 4, 5], [1], request_id=2, precision=Precision.INT4)
    num_rows = 1 + len(draft)
    parts = [
        Part(fine, start=1, num_rows=num_rows, num_due=num_rows, draft=draft),
        Part(coarse, start=0, num_rows=3, num_due=1),
    ]
    inputs = build_inputs(parts, block_tokens=BLOCK_TOKENS, previous={})
    assert isinstance(inputs.precision, np.ndarray)
    assert inputs.precision.tolist() == [True] * num_rows + [False] * 3
    padded = pad_rows(inputs, inputs.num_rows + 2)
    assert isinstance(padded.precision, np.ndarray)
    assert padded.precision.tolist() == [True] * num_rows + [False] * 5


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, None])
def test_rows_of_one_precision_say_it_once(precision: Precision | None) -> None:
    sequences = [make_sequence([1, 2], [n], request_id=n, precision=precision) for n in (1, 2)]
    parts = [Part(sequence, start=1, num_rows=1, num_due=1) for sequence in sequences]
    inputs = build_inputs(parts, block_tokens=BLOCK_TOKENS, previous={})
    assert inputs.precision is (precision or Precision.INT8)
    assert pad_rows(inputs, 4).precision is inputs.precision


def test_padding_adds_rows_of_nobody_and_touches_nothing_else() -> None:
    ahead = make_sequence([1, 2], [6], adapter=1)
    ahead.num_in_flight = 1
    part = Part(ahead, start=2, num_rows=1, num_due=1)
    inputs = build_inputs([part], block_tokens=BLOCK_TOKENS, previous={1: 0})
    padded = pad_rows(inputs, 3)
    assert padded.num_rows == 3
    assert padded.kv_rows.tolist() == [26, -1, -1]
    assert padded.awaited is not None
    assert padded.awaited.tolist() == [0, -1, -1]
    assert padded.adapters is not None
    assert padded.adapters.tolist() == [1, 0, 0]
    rows = ("token_ids", "positions", "kv_rows", "awaited", "adapters")
    for name in rows:
        assert len(getattr(padded, name)) == 3
    kept = {name: getattr(inputs, name) for name in rows}
    assert replace(padded, **kept) == inputs
    assert pad_rows(inputs, 1) is inputs


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=6))
def test_every_row_is_stored_at_its_position_in_its_own_blocks(
    sizes: list[tuple[int, int]],
) -> None:
    sizes.sort(key=lambda size: size[1] > 1)
    parts = []
    first_block = 0
    for number, (start, count) in enumerate(sizes):
        num_blocks = -(-(start + count) // BLOCK_TOKENS)
        # Backwards, so that no block lies where its number in the sequence says.
        blocks = list(range(first_block + num_blocks - 1, first_block - 1, -1))
        first_block += num_blocks
        tokens = [100 * number + place for place in range(start + count)]
        sequence = make_sequence(tokens, blocks, request_id=number)
        parts.append(Part(sequence, start, count, 1))
    inputs = build_inputs(parts, block_tokens=BLOCK_TOKENS, previous={})
    memory = np.full(first_block * BLOCK_TOKENS, -1)
    memory[inputs.kv_rows] = inputs.token_ids
    assert (memory >= 0).sum() == inputs.num_rows == sum(count for _, count in sizes)
    for number, (start, count) in enumerate(sizes):
        table = inputs.block_tables[number][: len(parts[number].sequence.blocks)]
        stored = memory.reshape(-1, BLOCK_TOKENS)[table].ravel()
        expected = [100 * number + place for place in range(start, start + count)]
        assert stored[start : start + count].tolist() == expected
    assert inputs.num_decodes == sum(count == 1 for _, count in sizes)
