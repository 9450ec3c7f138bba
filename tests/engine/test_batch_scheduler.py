"""The scheduler under any load: bounds, ownership of blocks, and that everything ends.

Driven by the decoder engine over a model whose attention state is the tokens (`token_memory`).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.core.wire import TokenDelta
from deepseek.engine.adapters import AdapterSet
from deepseek.engine.batch_scheduler import BatchScheduler
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_cache import BlockPool
from tests.engine.families import Bold
from tests.engine.token_memory import (
    VOCAB_SIZE,
    StepFailed,
    TokenMemory,
    answer,
    check_between_steps,
)

COMMON_PROMPT = [n * n % VOCAB_SIZE for n in range(150)]
"""Prompts begin like this for a while, so that they share blocks and wait for one another."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request, when it comes, and when its client goes away."""

    shared: int
    own: tuple[int, ...]
    max_tokens: int
    at_step: int
    aborted_after: int | None
    penalised: bool

    @property
    def prompt(self) -> list[int]:
        return [*COMMON_PROMPT[: self.shared], *self.own]

    @property
    def aborted_at(self) -> int | None:
        return None if self.aborted_after is None else self.at_step + self.aborted_after

    @property
    def num_tokens(self) -> int:
        return self.shared + len(self.own) + self.max_tokens


@dataclass(frozen=True, kw_only=True)
class World:
    """A machine and its load."""

    arrivals: tuple[Arrival, ...]
    block_tokens: int
    spare_blocks: int
    """Beyond what the largest request needs alone."""
    max_step_tokens: int
    max_running: int
    run_ahead: bool
    speculates: bool
    end: int | None
    lookahead: int
    short_of_memory: frozenset[int] = frozenset()
    """Calls of the runner that find no room for more than the smallest step."""
    broken: frozenset[int] = frozenset()
    """Calls of the runner that fail."""

    @property
    def num_blocks(self) -> int:
        largest = max(arrival.num_tokens for arrival in self.arrivals)
        return -(-largest // self.block_tokens) + self.spare_blocks


ARRIVALS = st.builds(
    Arrival,
    shared=st.sampled_from([0, 0, 5, 33, 80, 150]),
    own=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40).map(tuple),
    max_tokens=st.integers(1, 25),
    at_step=st.integers(0, 20),
    aborted_after=st.none() | st.integers(0, 20),
    penalised=st.booleans(),
)
WORLDS = st.builds(
    World,
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=10).map(tuple),
    block_tokens=st.sampled_from([1, 3, 4, 16]),
    spare_blocks=st.integers(0, 12),
    max_step_tokens=st.integers(1, 40),
    max_running=st.integers(1, 6),
    run_ahead=st.booleans(),
    speculates=st.booleans(),
    end=st.none() | st.integers(0, VOCAB_SIZE - 1),
    lookahead=st.integers(0, 1),
)


class House:
    """One engine and all that happens in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.scheduler = BatchScheduler(
            BlockPool(world.num_blocks, block_tokens=world.block_tokens),
            max_step_tokens=world.max_step_tokens,
            max_running=world.max_running,
            lookahead=world.lookahead,
        )
        self.runner = TokenMemory(
            self.scheduler,
            is_asynchronous=world.run_ahead,
            short_of_memory=world.short_of_memory,
            broken=world.broken,
        )
        ends = () if world.end is None else (world.end,)
        self.engine = DecoderEngine(
            "m",
            self.runner,
            self.scheduler,
            grammars=GrammarCompiler(Path(), vocab_size=VOCAB_SIZE, eos_token_ids=ends),
            eos_token_ids=ends,
            vocab_size=VOCAB_SIZE,
            max_model_len=world.num_blocks * world.block_tokens,
            adapters=AdapterSet((), dtype=torch.float32, device="cpu", max_adapters=1, max_rank=1),
            speculation=Bold(ngram=1, max_draft=5) if world.speculates else None,
        )
        self.answers: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.failed: set[int] = set()

    def serve(self) -> None:
        """Live through the world; ends when nobody is left, and fails where that takes too long."""
        arrivals = self.world.arrivals
        last = max(arrival.at_step for arrival in arrivals)
        # The oldest gets a row in every step, or others get tokens; each is waited for once.
        patience = last + 2 * sum(arrival.num_tokens + arrival.max_tokens for arrival in arrivals)
        patience += len(self.world.short_of_memory)
        step = 0
        while step <= last or self.engine.has_work:
            self._meet(step)
            self._step()
            step += 1
            assert step <= patience, "somebody waits for ever"

    def _meet(self, step: int) -> None:
        for number, arrival in enumerate(self.world.arrivals):
            if arrival.at_step == step:
                self.answers[number] = []
                self.engine.add(request(number, arrival))
            if arrival.aborted_at == step:
                self.engine.abort(number)

    def _step(self) -> None:
        num_steps = self.runner.num_steps
        try:
            outputs = self.engine.step()
        except StepFailed:
            self.failed.update(self.engine.fail_running())
            outputs = []
        for output in outputs:
            assert isinstance(output, TokenDelta)
            assert output.id not in self.reasons, "speaks after its end"
            self.answers[output.id].extend(output.token_ids)
            if output.finish_reason is not None:
                self.reasons[output.id] = output.finish_reason
        has_started = self.runner.num_steps > num_steps
        runs_on = has_started and self.world.run_ahead and not self.world.speculates
        check_between_steps(self.scheduler, self.runner.last_parts if runs_on else ())


def request(number: int, arrival: Arrival) -> GenerateRequest:
    sampling = SamplingParams(
        max_tokens=arrival.max_tokens,
        temperature=0.0,
        presence_penalty=0.5 if arrival.penalised else 0.0,  # must see each token before the next
    )
    return GenerateRequest(id=number, model="m", prompt_token_ids=arrival.prompt, sampling=sampling)


def check_answers(house: House) -> None:
    for number, arrival in enumerate(house.world.arrivals):
        expected = answer(arrival.prompt, arrival.max_tokens, end=house.world.end)
        given_out = house.answers[number]
        if number in house.reasons:
            assert given_out == expected, f"request {number}"
            ends = given_out[-1] == house.world.end
            assert house.reasons[number] == ("stop" if ends else "length")
        else:
            is_gone = arrival.aborted_after is not None or number in house.failed
            assert is_gone, f"request {number} never ended"
            assert given_out == expected[: len(given_out)]


@pytest.mark.timeout(120)
@settings(max_examples=250, deadline=None)
@given(WORLDS)
def test_every_request_ends_with_its_own_answer_whatever_runs_beside_it(world: World) -> None:
    house = House(world)
    house.serve()
    check_answers(house)
    assert (house.scheduler.pool.num_used, house.engine.has_work) == (0, False)


@pytest.mark.timeout(60)
@settings(max_examples=200, deadline=None)
@given(WORLDS, st.frozensets(st.integers(1, 40), max_size=12))
def test_a_device_short_of_memory_changes_no_answer(world: World, calls: frozenset[int]) -> None:
    house = House(replace(world, short_of_memory=calls))
    house.serve()
    check_answers(house)
    assert house.scheduler.pool.num_used == 0


@pytest.mark.timeout(60)
@settings(max_examples=200, deadline=None)
@given(WORLDS, st.frozensets(st.integers(1, 60), min_size=1, max_size=6))
def test_a_failed_step_loses_what_ran_and_spoils_nothing_else(
    world: World, calls: frozenset[int]
) -> None:
    house = House(replace(world, broken=calls))
    house.serve()
    check_answers(house)
    assert house.scheduler.pool.num_used == 0
