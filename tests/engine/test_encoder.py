"""The encoder engine: what it promises to the step loop, over a real tiny model."""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.requests import EncodeRequest, GenerateRequest, SamplingParams
from deepseek.core.wire import Encoded
from deepseek.engine.engines.encoder import LOOK_AHEAD, EncoderEngine
from deepseek.engine.models.encoder import Encoder, load_encoder
from deepseek.engine.models.packed_encoder import first_fit
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.weights.model_directory import open_model_directory

MAX_LEN = 100
MAX_STEP_TOKENS = 64


@pytest.fixture(scope="module")
def encoder(tiny_bert_dir: Path) -> Encoder:
    return load_encoder(
        open_model_directory(tiny_bert_dir), dtype=torch.float32, device="cpu", ops=ReferenceOps()
    )


@pytest.fixture
def engine(encoder: Encoder) -> EncoderEngine:
    return EncoderEngine("m", encoder, max_len=MAX_LEN, max_step_tokens=MAX_STEP_TOKENS)


def encode_request(
    request_id: int,
    sequences: list[list[int]],
    *,
    types: list[list[int]] | None = None,
) -> EncodeRequest:
    return EncodeRequest(id=request_id, model="m", sequences=sequences, token_type_ids=types)


def random_sequences(count: int, *, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, 90) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


def table(answer: Encoded) -> npt.NDArray[np.float32]:
    return np.frombuffer(answer.data, dtype=np.float32).reshape(answer.num_rows, answer.width)


def drain(engine: EncoderEngine) -> dict[int, npt.NDArray[np.float32]]:
    answers = {}
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, Encoded)
            answers[output.id] = table(output)
    return answers


def test_rows_come_in_the_order_of_the_sequences(engine: EncoderEngine, encoder: Encoder) -> None:
    requests = {number: random_sequences(12, seed=number) for number in range(5)}
    for number, sequences in requests.items():
        engine.add(encode_request(number, sequences))
    answers = drain(engine)
    assert answers.keys() == requests.keys()
    for number, sequences in requests.items():
        alone = np.concatenate([encoder.encode([sequence]) for sequence in sequences])
        np.testing.assert_allclose(answers[number], alone, atol=1e-5)


def test_a_request_with_types_does_not_lend_them_to_others(
    engine: EncoderEngine, encoder: Encoder
) -> None:
    tokens = [5, 6, 7, 8]
    engine.add(encode_request(1, [tokens]))
    engine.add(encode_request(2, [tokens], types=[[0, 0, 1, 1]]))
    answers = drain(engine)
    np.testing.assert_allclose(answers[1], encoder.encode([tokens]), atol=1e-5)
    typed = encoder.encode([tokens], type_ids=[[0, 0, 1, 1]])
    np.testing.assert_allclose(answers[2], typed, atol=1e-5)
    assert np.abs(answers[1] - answers[2]).max() > 1e-3


def test_a_sequence_longer_than_a_step_is_encoded_alone(engine: EncoderEngine) -> None:
    engine.add(encode_request(1, [[3] * MAX_LEN]))
    engine.add(encode_request(2, [[3]]))
    (first,) = engine.step()
    assert isinstance(first, Encoded)
    assert first.id == 1
    assert engine.has_work


def test_a_step_takes_tokens_up_to_its_budget(engine: EncoderEngine) -> None:
    engine.add(encode_request(1, [[3] * 8] * 20))
    engine.step()
    assert engine.load().num_waiting == 20 - MAX_STEP_TOKENS // 8


@given(lengths=st.lists(st.integers(1, MAX_LEN), min_size=1, max_size=2 * LOOK_AHEAD))
def test_every_sequence_is_encoded_once_in_batches_well_filled(lengths: list[int]) -> None:
    recorder = _RecordingEncoder()
    engine = EncoderEngine("m", recorder, max_len=MAX_LEN, max_step_tokens=MAX_STEP_TOKENS)
    engine.add(encode_request(1, [[1] * length for length in lengths]))
    while engine.has_work:
        engine.step()
    encoded = [length for batch in recorder.batches for length in batch]
    assert sorted(encoded) == sorted(lengths)
    for batch in recorder.batches:
        assert len(batch) == 1 or sum(batch) <= MAX_STEP_TOKENS
    # Any two neighbouring steps fill more than one budget: what was left over did not fit before.
    for one, two in pairwise(recorder.batches):
        assert sum(one) + sum(two) > MAX_STEP_TOKENS


def test_an_abort_drops_what_waits(engine: EncoderEngine) -> None:
    engine.add(encode_request(1, random_sequences(30)))
    engine.add(encode_request(2, [[4, 5]]))
    engine.step()
    engine.abort(1)
    engine.abort(77)
    assert drain(engine).keys() <= {2}
    assert engine.load().num_waiting == 0


def test_a_failed_step_loses_its_requests_only(encoder: Encoder) -> None:
    flaky = _FlakyEncoder(encoder)
    engine = EncoderEngine("m", flaky, max_len=MAX_LEN, max_step_tokens=MAX_STEP_TOKENS)
    engine.add(encode_request(1, [[3] * 40, [3] * 40]))
    engine.add(encode_request(2, [[4] * 40]))
    flaky.fails = True
    with pytest.raises(RuntimeError, match="no device"):
        engine.step()
    assert engine.fail_running() == [1]
    flaky.fails = False
    assert drain(engine).keys() == {2}


@pytest.mark.parametrize(
    ("sequences", "types", "message"),
    [
        ([], None, "nothing"),
        ([[1], []], None, "0 tokens"),
        ([[1] * (MAX_LEN + 1)], None, "101 tokens"),
        ([[1, 100_000]], None, "vocabulary"),
        ([[1, -1]], None, "vocabulary"),
        ([[1, 2]], [[0]], "token type"),
        ([[1, 2]], [], "token type"),
        ([[1, 2]], [[0, 2]], "token type"),
        ([[1, 2]], [[0, -1]], "token type"),
    ],
)
def test_what_cannot_be_encoded_is_refused_and_changes_nothing(
    engine: EncoderEngine,
    sequences: list[list[int]],
    types: list[list[int]] | None,
    message: str,
) -> None:
    with pytest.raises((InvalidRequest, ContextLengthExceeded), match=message):
        engine.add(encode_request(1, sequences, types=types))
    assert not engine.has_work


def test_an_encoder_does_not_generate(engine: EncoderEngine) -> None:
    sampling = SamplingParams(max_tokens=1)
    with pytest.raises(InvalidRequest, match="does not generate"):
        engine.add(GenerateRequest(id=1, model="m", prompt_token_ids=[1], sampling=sampling))


class _RecordingEncoder:
    """Chooses as packed models do and remembers the lengths of each batch."""

    vocab_size, width, num_types = 100, 1, 1

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def choose(self, lengths: Sequence[int], *, max_tokens: int) -> list[int]:
        return first_fit(lengths, max_tokens=max_tokens)

    def encode(
        self, sequences: Sequence[list[int]], *, type_ids: Sequence[list[int] | None] | None = None
    ) -> npt.NDArray[np.float32]:
        self.batches.append(list(map(len, sequences)))
        return np.zeros((len(sequences), 1), dtype=np.float32)


class _FlakyEncoder:
    """A real encoder on a device that can be taken away."""

    def __init__(self, encoder: Encoder) -> None:
        self.vocab_size, self.width = encoder.vocab_size, encoder.width
        self.num_types = encoder.num_types
        self.fails = False
        self._encoder = encoder

    def choose(self, lengths: Sequence[int], *, max_tokens: int) -> list[int]:
        return self._encoder.choose(lengths, max_tokens=max_tokens)

    def encode(
        self, sequences: Sequence[list[int]], *, type_ids: Sequence[list[int] | None] | None = None
    ) -> npt.NDArray[np.float32]:
        if self.fails:
            raise RuntimeError("no device")
        return self._encoder.encode(sequences, type_ids=type_ids)
