"""The few shapes that steps are padded to."""

from hypothesis import given
from hypothesis import strategies as st

from deepseek.engine.attention import padded_rows


@given(st.integers(1, 70_000))
def test_padding_adds_rows_and_never_many(num_rows: int) -> None:
    padded = padded_rows(num_rows)
    assert num_rows <= padded
    assert padded - num_rows <= max(0, num_rows // 2)
    assert padded_rows(padded) == padded


def test_a_step_of_512_tokens_has_few_shapes() -> None:
    assert len({padded_rows(count) for count in range(1, 513)}) <= 32
