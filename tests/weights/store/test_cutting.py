"""What holds for the chunks of any model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.weights.store.cutting import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    TENSOR_ALIGNMENT,
    CutChunk,
    cut,
)

NAMES = st.sampled_from(
    [
        *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "odd"),
        *(f"model.layers.{n}.{part}" for n in (0, 1, 12) for part in ("mlp.up", "attn.q", "norm")),
    ]
)
SIZES = st.one_of(
    st.integers(0, 4096),
    st.integers(0, 60_000_000),
    st.integers(-2, 2).map(lambda n: CHUNK_BYTES + n),
    st.integers(-2, 2).map(lambda n: 3 * CHUNK_BYTES + n),
    st.integers(-2, 2).map(lambda n: CHUNK_BYTES // 8 + n),
)
MODELS = st.dictionaries(NAMES, SIZES)


@given(MODELS)
def test_no_chunk_is_above_ten_megabytes(sizes: dict[str, int]) -> None:
    assert all(
        chunk.num_bytes <= CHUNK_BYTES < MAX_CHUNK_BYTES == 10_000_000 for chunk in cut(sizes)
    )


@given(MODELS)
def test_every_byte_of_every_tensor_has_one_place(sizes: dict[str, int]) -> None:
    ends = dict.fromkeys(sizes, 0)
    seen = set()
    for chunk in cut(sizes):
        end = 0
        for piece in chunk.pieces:
            assert piece.offset >= end, "pieces overlap"
            assert piece.offset % TENSOR_ALIGNMENT == 0
            assert piece.start == ends[piece.tensor], "a tensor's pieces come in order"
            ends[piece.tensor] += piece.num_bytes
            end = piece.offset + piece.num_bytes
            seen.add(piece.tensor)
    assert ends == sizes
    assert seen == set(sizes), "a tensor of no bytes has a place as well"


@given(MODELS, MODELS)
def test_a_large_tensor_is_cut_alike_in_any_company(
    some: dict[str, int], others: dict[str, int]
) -> None:
    name, size = "model.layers.1.mlp.experts", 2 * CHUNK_BYTES + 12_345
    assert _chunks_with(cut({**some, name: size}), name) == _chunks_with(
        cut({**others, name: size}), name
    )


@given(MODELS)
def test_chunks_of_a_large_tensor_follow_one_another(sizes: dict[str, int]) -> None:
    chunks = cut(sizes)
    for name in sizes:
        places = [i for i, chunk in enumerate(chunks) if chunk.pieces[0].tensor == name]
        assert places == list(range(places[0], places[0] + len(places))) if places else True


def test_small_tensors_are_gathered_a_layer_at_a_time() -> None:
    sizes = {f"model.layers.{n}.{part}": 100 for n in range(2) for part in "abc"}
    assert [len(chunk.pieces) for chunk in cut(sizes)] == [3, 3]


@pytest.mark.parametrize("chunk_bytes", [0, 4095, 10_002_432])
def test_chunks_that_cannot_be_mapped_are_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="must be pages"):
        cut({"x": 1}, chunk_bytes=chunk_bytes)


def _chunks_with(chunks: list[CutChunk], name: str) -> list[CutChunk]:
    return [chunk for chunk in chunks if any(piece.tensor == name for piece in chunk.pieces)]
