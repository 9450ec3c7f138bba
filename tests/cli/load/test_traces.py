"""Recorded arrivals: both formats, the real files where present, and bad ones."""

import itertools
from pathlib import Path

import pytest

from deepseek.cli.load.traces import read_trace, scale_trace
from deepseek.core.errors import ConfigurationError

TRACES = Path(__file__).parents[4] / "shared/data/traces"

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n"
    "2023-11-16 18:17:04.4799600,3180,8\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}\n'
    '{"timestamp": 500, "input_length": 600, "output_length": 3, "hash_ids": [1, 3]}\n'
)


@pytest.mark.parametrize(("text", "inputs"), [(AZURE, [4808, 3180]), (MOONCAKE, [1000, 600])])
def test_both_formats_give_arrivals_and_lengths(
    tmp_path: Path, text: str, inputs: list[int]
) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    rows = read_trace(path)
    assert [row.input_tokens for row in rows] == inputs
    assert [row.arrival_s for row in rows] == pytest.approx([0.0, 0.5])
    assert len(read_trace(path, max_rows=1)) == 1


@pytest.mark.parametrize(
    ("name", "num_rows", "mean_input"),
    [
        ("AzureLLMInferenceTrace_conv.csv", 19_366, 1155),
        ("AzureLLMInferenceTrace_code.csv", 8_819, 2048),
        ("mooncake_conversation.jsonl", 12_031, 12_035),
        ("mooncake_synthetic.jsonl", 3_993, 15_325),
    ],
)
def test_the_public_traces_are_read_whole(name: str, num_rows: int, mean_input: int) -> None:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"no {name} beside the checkout (../shared/data)")
    rows = read_trace(path)
    assert len(rows) == num_rows
    assert round(sum(row.input_tokens for row in rows) / num_rows) == mean_input
    assert all(a.arrival_s <= b.arrival_s for a, b in itertools.pairwise(rows))


def test_scaling_keeps_the_shape_and_never_grows(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(MOONCAKE)
    rows = scale_trace(read_trace(path), speed=10, max_input_tokens=100, max_output_tokens=500)
    assert [row.input_tokens for row in rows] == [100, 60]
    assert [row.output_tokens for row in rows] == [5, 3]
    assert [row.arrival_s for row in rows] == pytest.approx([0.0, 0.05])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no requests"),
        ("a,b\n1,2\n", "has no column 'TIMESTAMP'"),
        (AZURE + "today,1,2\n", ":4: is not an Azure row"),
        (AZURE + "2023-11-16 18:17:03,1\n", ":4: is not an Azure row"),
        (MOONCAKE + '{"timestamp": "x"}\n', ":3: is not a Mooncake row"),
        (MOONCAKE + "oops\n", ":3: is not a Mooncake row"),
    ],
)
def test_a_bad_trace_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_trace(path)
    assert words in caught.value.message


def test_a_missing_or_binary_trace_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_trace(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_trace(tmp_path / "binary")
