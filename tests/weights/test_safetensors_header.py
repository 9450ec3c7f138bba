"""Files that the safetensors library wrote, cut and bent."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from deepseek.core.errors import CorruptWeights
from deepseek.weights.safetensors_header import read_header

WHOLE = save(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(5, dtype=np.float16)}
)


def test_names_types_and_shapes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32)}, file, metadata={"format": "pt"})
    header = read_header(file)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.items()} == {
        "a": ("F32", (2, 3))
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptWeights, match=r"gone\.safetensors is missing"):
        read_header(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(WHOLE[:length])
    with pytest.raises(CorruptWeights, match="fetch the model again"):
        read_header(file)


def test_a_file_with_a_tail_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "long.safetensors"
    file.write_bytes(WHOLE + b"x")
    with pytest.raises(CorruptWeights, match="35 bytes of tensors where its header says 34"):
        read_header(file)


def test_offsets_that_contradict_the_shape_are_refused(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    file = tmp_path / "bent.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CorruptWeights, match="unreadable header"):
        read_header(file)


def test_a_huge_header_length_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "huge.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CorruptWeights, match="cut off inside its header"):
        read_header(file)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_never_escapes(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    file.write_bytes(WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :])
    try:
        header = read_header(file)
    except CorruptWeights:
        return
    assert len(header) <= 2
