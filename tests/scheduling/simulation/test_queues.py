"""The simulated queue beside the engine's own scheduler: the same plans, the same steps."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.engine.batch_scheduler import BatchScheduler
from deepseek.engine.kv_cache import BlockPool
from deepseek.engine.sequence import Sequence
from deepseek.scheduling.batching.base import StepLimits, StepPlan
from deepseek.scheduling.simulation.queues import BLOCK_TOKENS, DecoderQueue, EncoderQueue
from deepseek.scheduling.simulation.requests import Arrival, SimulatedRequest

_ITL_S = 0.05


class Engine:
    """The real scheduler, with tokens that nobody shares in place of a model."""

    def __init__(self, limits: StepLimits, *, num_blocks: int) -> None:
        self.scheduler = BatchScheduler(
            BlockPool(num_blocks),
            max_step_tokens=limits.max_tokens,
            max_running=limits.max_sequences,
        )
        self._tokens = itertools.count()

    def add(self, request: SimulatedRequest) -> None:
        prompt = list(itertools.islice(self._tokens, request.prompt_tokens))
        generate = GenerateRequest(
            id=request.id,
            model="m",
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=request.output_tokens),
        )
        self.scheduler.add(
            Sequence(
                request=generate,
                tokens=list(prompt),
                num_prompt=len(prompt),
                due_s=request.due_s,
                itl_s=_ITL_S,
            )
        )

    def step(self, plan: StepPlan, now_s: float) -> dict[int, int]:
        """Return the rows of each sequence in the step."""
        rows: dict[int, int] = {}
        for part in self.scheduler.schedule(plan=plan):
            sequence = part.sequence
            rows[sequence.id] = part.num_rows
            sequence.num_in_flight -= part.num_due
            if part.num_due:
                sequence.tokens.append(next(self._tokens))
                sequence.was_answered(now_s)
                if sequence.num_output >= sequence.sampling.max_tokens:
                    self.scheduler.remove(sequence, trusted=False)
        return rows


def _step(queue: DecoderQueue, plan: StepPlan, now_s: float) -> dict[int, int]:
    batch = queue.take(plan)
    if batch is None:
        return {}
    rows = {request.id: 1 for request in batch.decoding} | {
        request.id: num_rows for request, num_rows in batch.chunks
    }
    queue.finish(batch, now_s)
    return rows


_arrivals = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 90), st.integers(1, 20)), min_size=1, max_size=14
)
_plans = st.lists(
    st.tuples(st.integers(1, 64), st.integers(1, 8), st.sampled_from(["fifo", "reverse", "none"])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(arrivals=_arrivals, plans=_plans, num_blocks=st.integers(7, 30))
def test_every_step_is_the_one_that_the_engine_would_take(
    arrivals: list[tuple[int, int, int]], plans: list[tuple[int, int, str]], num_blocks: int
) -> None:
    limits = StepLimits(max_tokens=48, max_sequences=6)
    engine = Engine(limits, num_blocks=num_blocks)
    queue = DecoderQueue(limits, kv_tokens=num_blocks * BLOCK_TOKENS)
    requests = [
        (step, SimulatedRequest(number, Arrival(at_s=0.0, prompt_tokens=p, output_tokens=o)))
        for number, (step, p, o) in enumerate(arrivals)
    ]
    for number in range(2000):
        for step, request in requests:
            if step == number:
                request.arrive(float(number), ttft_s=1.0, itl_s=_ITL_S)
                engine.add(request)
                queue.waiting.append(request)
        max_tokens, max_sequences, order = plans[number % len(plans)]
        if not queue.running and order == "none":
            order = "fifo"
        now_s = number + 0.5
        theirs = engine.step(
            _plan(max_tokens, max_sequences, order, list(engine.scheduler.waiting)), now_s
        )
        ours = _step(queue, _plan(max_tokens, max_sequences, order, list(queue.waiting)), now_s)
        assert ours == theirs
        assert [r.id for r in queue.running] == [s.id for s in engine.scheduler.running]
        assert [r.id for r in queue.waiting] == [s.id for s in engine.scheduler.waiting]
        assert [(r.due_s, r.num_pending, r.num_computed) for r in queue.running] == [
            (s.due_s, s.num_pending, s.num_computed) for s in engine.scheduler.running
        ]
        assert queue.kv_tokens_used == engine.scheduler.pool.num_used * BLOCK_TOKENS
        if number > 12 and not (queue.running or queue.waiting):
            break
    else:
        raise AssertionError("the load did not end")
    assert queue.num_preemptions == engine.scheduler.num_preemptions
    assert all(math.isfinite(request.ended_s or math.inf) for _, request in requests)


def _plan(max_tokens: int, max_sequences: int, order: str, waiting: list[object]) -> StepPlan:
    ordered = {"fifo": None, "reverse": waiting[::-1], "none": ()}[order]
    return StepPlan(max_tokens=max_tokens, max_sequences=max_sequences, order=ordered)  # type: ignore[arg-type]


def test_an_encoder_takes_the_oldest_and_what_fits_beside_it() -> None:
    queue = EncoderQueue(StepLimits(max_tokens=100, max_sequences=8))
    requests = [
        SimulatedRequest(number, Arrival(at_s=0.0, prompt_tokens=tokens))
        for number, tokens in enumerate((150, 60, 30, 20))
    ]
    queue.waiting.extend(requests)
    plan = StepPlan(max_tokens=100, max_sequences=8)
    first = queue.take(plan)
    second = queue.take(plan)
    assert first is not None
    assert second is not None
    assert [request.id for request, _ in first.chunks] == [0], "longer than a step, it goes alone"
    assert [request.id for request, _ in second.chunks] == [1, 2]
    assert second.shape.num_prefill_tokens == 90
    assert queue.finish(second, 7.0) == requests[1:3]
    assert [request.ended_s for request in requests] == [None, 7.0, 7.0, None]
