"""Guesses of DeepSeek-V3's own head: answers stay the same, and its state is whole everywhere."""

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.requests import GenerateRequest, SamplingParams, Task
from deepseek.core.wire import ModelSpec, TokenDelta, WorkerSpec
from deepseek.engine.adapters import AdapterSet
from deepseek.engine.batch_scheduler import BatchScheduler
from deepseek.engine.drafts import Guess
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_cache import DEFAULT_BLOCK_TOKENS, BlockPool
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.loading import load_engine
from deepseek.engine.models.mtp import MTPDrafter
from deepseek.engine.models.registry import load_decoder, load_drafter
from deepseek.engine.mtp_runner import MTPRunner
from deepseek.engine.mtp_speculation import MTPSpeculation
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.sequence import Sequence
from tests.engine.families import greedy, make_engine, run_all
from tests.engine.models.paged import PagedState
from tests.engine.models.paged import Sequence as PagedSequence
from tests.tiny_models import add_mtp_head, make_mtp_head_right

VOCAB = 512


@pytest.fixture(scope="module")
def tiny_random_head_dir(
    tiny_deepseek_v3_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A head of random weights: its guesses are wrong, and hang on all of its state."""
    path = tmp_path_factory.mktemp("mtp") / "random-head"
    shutil.copytree(tiny_deepseek_v3_dir, path)
    add_mtp_head(path)
    return path


@pytest.fixture(scope="module")
def tiny_right_head_dir(
    tiny_random_head_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("mtp") / "right-head"
    shutil.copytree(tiny_random_head_dir, path)
    make_mtp_head_right(path)
    return path


class Bold(MTPSpeculation):
    """Guesses whatever it seems worth, and remembers every guess."""

    def __init__(self) -> None:
        super().__init__()
        self.guesses: list[tuple[Sequence, Guess]] = []

    def offer(self, guesses: list[tuple[Sequence, Guess]], *, seconds: float) -> None:
        self.guesses += guesses
        super().offer(guesses, seconds=seconds)

    def _worthwhile(self, chance: float) -> int:
        return self._max_draft


def load_head(path: Path) -> MTPDrafter:
    ops = make_ops("cpu")
    target = load_decoder(path, dtype=torch.float32, device="cpu", ops=ops)
    head = load_drafter(path, target=target, dtype=torch.float32, device="cpu", ops=ops)
    assert head is not None
    return head


@dataclass
class Guessing:
    """An engine that guesses, and the parts of it that tests look into."""

    path: Path
    speculation: MTPSpeculation = field(default_factory=Bold)
    capacity_tokens: int = 4000
    max_step_tokens: int = 48
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.head = load_head(self.path)
        num_blocks = self.capacity_tokens // DEFAULT_BLOCK_TOKENS
        vocab = self.head.target.vocab_size
        storage = KVStorage(
            self.head.joint_kv_shape,
            num_blocks=num_blocks,
            block_tokens=DEFAULT_BLOCK_TOKENS,
            device="cpu",
        )
        self.scheduler = BatchScheduler(
            BlockPool(num_blocks),
            max_step_tokens=self.max_step_tokens,
            max_running=8,
            lookahead=1,
        )
        self.engine = DecoderEngine(
            "m",
            MTPRunner(
                self.head, storage, speculation=self.speculation, eos_token_ids=self.eos_token_ids
            ),
            self.scheduler,
            grammars=GrammarCompiler(self.path, vocab_size=vocab, eos_token_ids=self.eos_token_ids),
            eos_token_ids=self.eos_token_ids,
            vocab_size=vocab,
            max_model_len=256,
            adapters=AdapterSet(
                self.head.target.projections,
                dtype=torch.float32,
                device="cpu",
                max_adapters=1,
                max_rank=16,
            ),
            speculation=self.speculation,
        )


def requests_of_all_kinds(temperature: float) -> list[GenerateRequest]:
    """Prompts of 1 to 150 tokens, many with a common beginning; answers of 1 to 60."""
    rng = random.Random(7)
    shared = [rng.randrange(VOCAB) for _ in range(96)]
    requests = []
    for number in range(14):
        prompt = shared[: rng.choice((0, 16, 40, 96))]
        prompt = prompt + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 55))]
        sampling = SamplingParams(
            max_tokens=rng.randrange(1, 60), temperature=temperature, top_p=0.9, seed=number
        )
        requests.append(
            GenerateRequest(id=number, model="m", prompt_token_ids=prompt, sampling=sampling)
        )
    return requests


@pytest.mark.timeout(60)
@pytest.mark.parametrize("capacity_tokens", [4000, 272])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_answers_are_the_same_with_and_without(
    tiny_right_head_dir: Path, temperature: float, capacity_tokens: int
) -> None:
    requests = requests_of_all_kinds(temperature)
    plain = run_all(make_engine(tiny_right_head_dir), requests)
    guessing = Guessing(tiny_right_head_dir, capacity_tokens=capacity_tokens)
    assert run_all(guessing.engine, requests) == plain
    speculation, load = guessing.speculation, guessing.engine.load()
    assert 0 < speculation.num_accepted < speculation.num_drafted
    assert load.prefix_hit_tokens > 0 or capacity_tokens < 1000
    assert (load.num_preemptions > 0) == (capacity_tokens < 1000)
    assert load.kv_tokens_used == 0


def test_right_guesses_save_steps(tiny_right_head_dir: Path) -> None:
    guessing = Guessing(tiny_right_head_dir)
    guessing.engine.add(greedy(1, [5, 6, 7], 120))
    sizes: Counter[int] = Counter()
    while guessing.engine.has_work:
        (delta,) = guessing.engine.step()
        assert isinstance(delta, TokenDelta)
        sizes[len(delta.token_ids)] += 1
    assert sizes[1] + 2 * sizes[2] == 120
    assert sizes[2] == guessing.speculation.num_accepted
    assert guessing.speculation.num_accepted > 0.6 * guessing.speculation.num_drafted


def test_an_answer_ends_at_its_end_token_inside_an_accepted_guess(
    tiny_right_head_dir: Path,
) -> None:
    request = greedy(1, [5, 6, 7], 80)
    free = run_all(make_engine(tiny_right_head_dir), [request])[1]
    for end in sorted(set(free))[:6]:
        guessing = Guessing(tiny_right_head_dir, eos_token_ids=(end,))
        assert run_all(guessing.engine, [request])[1] == free[: free.index(end) + 1]
        assert guessing.engine.load().kv_tokens_used == 0


def expected_guesses(head: MTPDrafter, tokens: list[int]) -> list[int]:
    """Return, for each place from 2 on, the head's guess when all tokens are known at once."""
    state = PagedState(head.joint_kv_shape)
    batch = state.batch([(PagedSequence(tokens), len(tokens) - 1)])
    *layers, own = state.layers
    with torch.inference_mode():
        states = head.target.states(batch, layers)
        logits = head.forward(states, torch.tensor(tokens[1:]), batch, own, rows=None)
    guesses: list[int] = logits.argmax(dim=-1).tolist()
    return guesses


def assert_guesses_are_of_whole_state(guessing: Guessing) -> None:
    assert isinstance(guessing.speculation, Bold)
    expected: dict[int, list[int]] = {}
    for sequence, guess in guessing.speculation.guesses:
        if sequence.id not in expected:
            expected[sequence.id] = expected_guesses(guessing.head, sequence.tokens)
        where = f"request {sequence.id}, place {guess.place}"
        assert guess.token == expected[sequence.id][guess.place - 2], where


@pytest.mark.timeout(60)
@pytest.mark.parametrize("capacity_tokens", [4000, 272])
def test_the_head_sees_all_that_the_target_sees(
    tiny_random_head_dir: Path, capacity_tokens: int
) -> None:
    requests = requests_of_all_kinds(0.0)
    guessing = Guessing(tiny_random_head_dir, capacity_tokens=capacity_tokens)
    run_all(guessing.engine, requests)
    load = guessing.engine.load()
    assert load.prefix_hit_tokens > 0 or capacity_tokens < 1000
    assert (load.num_preemptions > 0) == (capacity_tokens < 1000)
    assert len(guessing.speculation.guesses) > 200
    assert_guesses_are_of_whole_state(guessing)


def test_a_shared_block_was_computed_with_the_next_token_that_all_its_users_have(
    tiny_random_head_dir: Path,
) -> None:
    rng = random.Random(2)
    common = [rng.randrange(VOCAB) for _ in range(48)]
    guessing = Guessing(tiny_random_head_dir)
    # Whoever comes later goes another way after exactly three blocks, or one token further on.
    for number, rest in enumerate(([1, 2, 3], [4, 5, 6], [1, 9, 9], [7, 8, 9])):
        run_all(guessing.engine, [greedy(number, common + rest, 30)])
    assert guessing.engine.load().prefix_hit_tokens == 32 + 48 + 32
    assert_guesses_are_of_whole_state(guessing)


def test_a_continued_conversation_finds_its_answer_in_the_cache(tiny_random_head_dir: Path) -> None:
    guessing = Guessing(tiny_random_head_dir)
    prompt = list(range(1, 21))
    answer = run_all(guessing.engine, [greedy(1, prompt, 60)])[1]
    run_all(guessing.engine, [greedy(2, [*prompt, *answer, 3, 4, 5], 20)])
    # The last token's own row was never computed; of 79 rows four blocks are full.
    assert guessing.engine.load().prefix_hit_tokens == 64
    assert_guesses_are_of_whole_state(guessing)


def test_what_needs_its_last_token_is_not_guessed(tiny_right_head_dir: Path) -> None:
    sampling = SamplingParams(max_tokens=30, temperature=0.0, presence_penalty=0.5)
    request = GenerateRequest(id=1, model="m", prompt_token_ids=[5, 6, 7], sampling=sampling)
    guessing = Guessing(tiny_right_head_dir)
    assert run_all(guessing.engine, [request]) == run_all(
        make_engine(tiny_right_head_dir), [request]
    )
    assert guessing.speculation.num_drafted == 0


def test_random_aborts_leave_nothing_behind(tiny_right_head_dir: Path) -> None:
    guessing = Guessing(tiny_right_head_dir, capacity_tokens=400)
    engine, rng = guessing.engine, random.Random(9)
    for number in range(60):
        engine.add(greedy(number, [rng.randrange(50) for _ in range(rng.randrange(1, 60))], 30))
        if rng.random() < 0.5:
            engine.abort(rng.randrange(number + 1))
        engine.step()
    while engine.has_work:
        engine.step()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.kv_tokens_used) == (0, 0, 0)


# what guesses are worth


def make_sequence(*, max_tokens: int = 5000) -> Sequence:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    request = GenerateRequest(id=1, model="m", prompt_token_ids=[1, 2, 3], sampling=sampling)
    return Sequence(request=request, tokens=[1, 2, 3], num_prompt=3)


def guess_along(
    speculation: MTPSpeculation, sequence: Sequence, *, is_right: bool, guess_s: float, steps: int
) -> list[bool]:
    """Live through steps of 10 ms and 1 ms a row; return in which of them a guess was made."""
    made = []
    for _ in range(steps):
        draft = speculation.draft(sequence)
        wanted = speculation.wants(sequence, num_new=1)
        guess = Guess(len(sequence.tokens) + 1, 7)
        speculation.offer([(sequence, guess)] * wanted, seconds=guess_s * wanted)
        if draft:
            speculation.observe(sequence, 1, int(is_right))
        sequence.tokens.append(7)
        num_rows = 1 + len(draft)
        speculation.observe_step(
            num_rows=num_rows,
            num_decoding=1,
            seconds=0.010 + 0.001 * num_rows + guess_s * wanted,
        )
        made.append(wanted)
    return made


def test_guesses_stop_when_they_are_wrong_and_are_tried_again_after_a_pause() -> None:
    speculation, sequence = MTPSpeculation(), make_sequence()
    made = guess_along(speculation, sequence, is_right=False, guess_s=0.001, steps=600)
    assert made[0]
    assert 2 <= sum(made[20:]) < 30
    made = guess_along(speculation, sequence, is_right=True, guess_s=0.001, steps=600)
    assert all(made[-50:])


@pytest.mark.parametrize(("guess_s", "pays"), [(0.001, True), (0.008, True), (0.012, False)])
def test_what_making_a_guess_costs_counts(guess_s: float, pays: bool) -> None:
    # A right guess saves a step of 11 ms and costs a row of 1 ms beside its making.
    speculation, sequence = MTPSpeculation(), make_sequence()
    guess_along(speculation, make_sequence(), is_right=False, guess_s=guess_s, steps=20)
    made = guess_along(speculation, sequence, is_right=True, guess_s=guess_s, steps=300)
    assert (sum(made) > 280) == pays
    assert (sum(made) < 60) == (not pays)


def test_no_guess_passes_the_end_of_the_answer() -> None:
    speculation, sequence = MTPSpeculation(), make_sequence(max_tokens=3)
    assert speculation.wants(sequence, num_new=1)
    assert not speculation.wants(sequence, num_new=2)


def test_a_guess_is_of_no_use_at_another_place() -> None:
    speculation, sequence = MTPSpeculation(), make_sequence()
    speculation.offer([(sequence, Guess(4, 9))], seconds=0.001)
    assert speculation.draft(sequence) == ()
    sequence.tokens.append(8)
    assert speculation.draft(sequence) == (9,)
    sequence.tokens.append(9)
    assert speculation.draft(sequence) == ()


# loading


def load(path: Path, *, device: str = "cpu", **options: str) -> DecoderEngine:
    model = ModelSpec(name="m", path=str(path), task=Task.GENERATE, dtype="float32", **options)
    spec = WorkerSpec(
        pool="default", socket_path="", device="cpu", models=[model], kv_cache_bytes=1 << 22
    )
    engine, _ = load_engine(model, spec, device=device)
    assert isinstance(engine, DecoderEngine)
    return engine


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}])
def test_a_model_is_loaded_with_its_head(
    tiny_right_head_dir: Path, options: dict[str, str]
) -> None:
    requests = [greedy(number, [number + 1] * 20, 30) for number in range(3)]
    plain = run_all(load(tiny_right_head_dir, **options), requests)
    assert run_all(load(tiny_right_head_dir, speculation="mtp", **options), requests) == plain


def test_weights_without_a_head_are_refused(
    tiny_deepseek_v3_dir: Path, tiny_llama_dir: Path
) -> None:
    for path in (tiny_deepseek_v3_dir, tiny_llama_dir):
        with pytest.raises(ConfigurationError, match=r"models\.m\.speculation: `mtp` needs"):
            load(path, speculation="mtp")


def test_a_gpu_is_refused_before_weights_are_read(tiny_right_head_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="CPU pools only, not on 'cuda:0'"):
        load(tiny_right_head_dir, device="cuda:0", speculation="mtp")
