"""The decoder engine: continuous batching over one language model.

Each step is `schedule`, `run`, `postprocess`. Where the device works on its own (a GPU), the next
step is scheduled and started before the tokens of the running one have been read: they stay on the
device, and the end of an answer is noticed one step late.
"""

import logging
import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from pathlib import Path

import torch

from deepseek.core.errors import InvalidRequest
from deepseek.core.load import ModelLoad
from deepseek.core.precision import Precision
from deepseek.core.qos import QoS
from deepseek.core.requests import EncodeRequest, FinishReason
from deepseek.core.wire import Failed, TokenDelta
from deepseek.engine.adapters import AdapterSet
from deepseek.engine.base import BeforePiece, Output, Request, StepReport, at_once
from deepseek.engine.batch_scheduler import BatchScheduler, Part
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.preparing import Writing
from deepseek.engine.request_checks import check_generation
from deepseek.engine.runner import PendingStep, Runner
from deepseek.engine.sampling import describe, history
from deepseek.engine.sequence import Sequence
from deepseek.engine.speculation import Speculation
from deepseek.scheduling.batching.base import (
    NOTHING,
    Demand,
    StepLimits,
    StepPlan,
    StepShape,
    prompt_pairs,
)

logger = logging.getLogger(__name__)

MIN_STEP_TOKENS = 16
"""The budget is not halved below this after an out-of-memory error."""


class DecoderEngine:
    """Steps one decoder; see `deepseek.engine.base.Engine` for the promises."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        scheduler: BatchScheduler,
        *,
        grammars: GrammarCompiler,
        eos_token_ids: tuple[int, ...],
        vocab_size: int,
        max_model_len: int,
        adapters: AdapterSet,
        speculation: Speculation | None = None,
        precisions: Rows[Precision] = (),
    ) -> None:
        """`precisions`: those that the model's layers compute in as rows ask, best first."""
        self.name = name
        self.max_model_len = max_model_len
        self._runner = runner
        self._scheduler = scheduler
        self._grammars = grammars
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._adapters = adapters
        self._speculation = speculation
        self._precisions = precisions
        self._in_flight: PendingStep | None = None
        self._qos = QoS()
        self._found_no_memory = False
        self._is_parked = False
        self.last_step: StepReport | None = None
        self.writing: Writing | None = None
        """Prepares the weights for the next load, while there is something to be done."""

    @property
    def limits(self) -> StepLimits:
        """What the device allows a step."""
        scheduler = self._scheduler
        return StepLimits(max_tokens=scheduler.max_step_tokens, max_sequences=scheduler.max_running)

    @property
    def has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(scheduler.waiting or scheduler.running or self._in_flight)

    @property
    def is_being_prepared(self) -> bool:
        return self.writing is not None and self.writing.is_under_way

    def expect(self, qos: QoS) -> None:
        """Give requests added from now on these deadlines."""
        self._qos = qos

    def demand(self, now_s: float) -> Demand:
        """Show the scheduler's own queues."""
        scheduler = self._scheduler
        return Demand(
            now_s=now_s,
            waiting=scheduler.waiting,
            running=scheduler.running,
            is_in_flight=self._in_flight is not None,
        )

    def add(self, request: Request, *, now_s: float | None = None) -> None:
        """Check a generation and queue it."""
        if isinstance(request, EncodeRequest):
            raise InvalidRequest(f"model {self.name!r} generates; it does not encode")
        check_generation(
            request,
            max_model_len=self.max_model_len,
            vocab_size=self._vocab_size,
            precisions=self._precisions,
        )
        params, prompt = request.sampling, request.prompt_token_ids
        matcher = self._grammars.matcher(params.grammar) if params.grammar else None
        adapter = None if request.adapter is None else self._adapters.acquire(request.adapter)
        arrived_s = time.monotonic() if now_s is None else now_s
        self._scheduler.add(
            Sequence(
                adapter=adapter,
                precision=request.precision or next(iter(self._precisions), None),
                request=request,
                tokens=list(prompt),
                num_prompt=len(prompt),
                arrived_s=arrived_s,
                due_s=arrived_s + self._qos.ttft_s,
                itl_s=self._qos.itl_s,
                # Not cryptography: reproducible draws.
                generator=random.Random(params.seed),  # noqa: S311
                matcher=matcher,
                history=history(params, prompt, self._vocab_size),
            )
        )

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        """Run one mixed batch, or start it and return what the one before it produced."""
        if self._is_parked:
            raise RuntimeError(f"model {self.name!r} is parked; wake it before its next step")
        self.last_step = None
        self._found_no_memory = False
        if self._in_flight is not None and self._must_wait():
            return self._collect()  # given out before a start that fails could lose it
        started_s = time.perf_counter()
        started = self._start(plan)
        self.last_step = self._report(started)
        outputs = self._collect()
        self._in_flight = started
        if started is not None and (self._speculation or not self._runner.is_asynchronous):
            outputs += self._collect()
            self._learn(started.parts, time.perf_counter() - started_s)
        return outputs

    def settle(self) -> None:
        """Wait for the step in flight; its tokens are read once more by the next step."""
        if self._in_flight is not None:
            self._in_flight.wait()

    def abort(self, request_id: int) -> None:
        """Drop a request wherever it is; its computed prefix stays reusable."""
        sequence = self._scheduler.find(request_id)
        if sequence is not None:
            self._leave(sequence)

    def fail_running(self) -> list[int]:
        """Drop every running sequence; what its blocks hold is not trusted again."""
        self._in_flight = None
        for sequence in self._scheduler.waiting:
            sequence.num_in_flight = 0  # preempted behind a step whose tokens will not come
        failed = list(self._scheduler.running)
        for sequence in failed:
            self._leave(sequence, trusted=False)
        return [sequence.id for sequence in failed]

    def load(self) -> ModelLoad:
        """Count queues and KV tokens."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        return ModelLoad(
            model=self.name,
            num_waiting=len(scheduler.waiting),
            num_running=len(scheduler.running),
            kv_tokens_used=pool.num_used * pool.block_tokens,
            kv_tokens_cached=pool.num_cached * pool.block_tokens,
            kv_tokens_capacity=pool.num_blocks * pool.block_tokens,
            num_preemptions=scheduler.num_preemptions,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
        )

    @property
    def can_park(self) -> bool:
        """Whether the model can leave the device: see `deepseek.engine.base.Parkable`."""
        return self._runner.can_park

    def park(self) -> None:
        """Leave the device, cached prefixes forgotten; raises `RuntimeError` beside work."""
        if self.has_work:
            raise RuntimeError(f"model {self.name!r} has work and cannot leave the device")
        self._scheduler.pool.forget()
        self._runner.park()
        self._is_parked = True

    def wake(self, before_piece: BeforePiece = at_once) -> None:
        """Come back; the copy of the weights is queued before what this thread does next."""
        self._runner.wake(before_piece)
        self._is_parked = False

    def drop_host_copy(self) -> None:
        """Stay on the device from now on."""
        self._runner.drop_host_copy()

    def close(self) -> None:
        """Forget all requests, weights and adapters."""
        if self.writing is not None:
            self.writing.close()
        self._in_flight = None
        self._scheduler.waiting.clear()
        self._scheduler.running.clear()
        self._runner.close()
        del self._adapters  # it knows every layer

    def warm_up(self) -> None:
        """Read the tokenizer, which constrained requests need and others do not."""
        self._grammars.warm_up()

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that take requests."""
        return self._adapters.names

    def prepare_adapter(self, name: str, path: Path) -> Callable[[], None]:
        """Read a LoRA adapter; see `deepseek.engine.base.AdapterHost`."""
        matrices = self._adapters.read(path)

        def install() -> None:
            self._adapters.load(name, matrices)

        return install

    def drop_adapter(self, name: str) -> None:
        """Take no new request for an adapter."""
        self._adapters.drop(name)

    def _leave(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """End a sequence: its blocks and its adapter are free."""
        self._scheduler.remove(sequence, trusted=trusted)
        if sequence.adapter is not None:
            self._adapters.release(sequence.adapter)

    # schedule and run

    def _must_wait(self) -> bool:
        """Say whether the next step can only be scheduled when the tokens of this one are read."""
        return self._speculation is not None or any(
            s.needs_last_token for s in self._scheduler.running
        )

    def _start(self, plan: StepPlan | None) -> PendingStep | None:
        speculation = self._speculation
        parts = self._scheduler.schedule(
            None if speculation is None else speculation.draft, plan=plan
        )
        if not parts:
            return None
        try:
            return self._runner.run(parts, previous=self._in_flight)
        except torch.OutOfMemoryError:
            if len(parts) == 1 and parts[0].num_rows <= MIN_STEP_TOKENS:
                raise  # nothing smaller can be tried
            self._take_back(parts)
            return None

    def _report(self, started: PendingStep | None) -> StepReport | None:
        """Describe a step for those who learn what steps cost."""
        if started is None:
            if not self._found_no_memory:
                return None
            return StepReport(shape=NOTHING, found_no_memory=True)
        now_s = time.monotonic()
        num_prefill = num_decoding = num_context = num_pairs = 0
        waits: list[float] = []
        for part in started.parts:
            sequence = part.sequence
            num_context += part.start + part.num_rows
            is_single = part.num_rows == 1 + len(part.draft)
            if is_single and sequence.num_output + sequence.num_in_flight > part.num_due:
                num_decoding += 1
            else:
                num_prefill += part.num_rows
                num_pairs += prompt_pairs(part.num_rows, start=part.start)
            if not sequence.has_begun:
                sequence.has_begun = True
                waits.append(now_s - sequence.arrived_s)
        shape = StepShape(
            num_prefill_tokens=num_prefill,
            num_decoding=num_decoding,
            num_context_tokens=num_context,
            num_sequences=len(started.parts),
            num_prefill_pairs=num_pairs,
        )
        return StepReport(shape=shape, waits_s=tuple(waits))

    def _take_back(self, parts: list[Part]) -> None:
        """Undo a step that found no memory, and make the next ones smaller."""
        self._found_no_memory = True
        scheduler = self._scheduler
        num_rows = sum(part.num_rows for part in parts)
        for part in parts:
            part.sequence.num_scheduled -= part.num_rows
            part.sequence.num_in_flight -= part.num_due
        scheduler.shrink(
            max_tokens=max(MIN_STEP_TOKENS, num_rows // 2), max_running=len(parts) // 2
        )
        logger.warning(
            "model %s: out of memory in a step of %d tokens; from now on at most %d tokens of %d "
            "sequences a step",
            self.name,
            num_rows,
            scheduler.max_step_tokens,
            scheduler.max_running,
        )

    # postprocess

    def _collect(self) -> list[Output]:
        """Read the tokens of the step in flight and give them out."""
        pending, self._in_flight = self._in_flight, None
        if pending is None:
            return []
        tokens, logprobs = pending.wait()
        now_s = time.monotonic()
        outputs: list[Output] = []
        row = 0
        for part in pending.parts:
            rows = range(row, row + part.num_due)
            row += part.num_due
            if not part.sequence.is_over:
                outputs.extend(self._advance(part, [tokens[r] for r in rows], rows, logprobs))
                if part.num_due:
                    part.sequence.was_answered(now_s)
        return outputs

    def _advance(
        self, part: Part, drawn: list[int], rows: range, logprobs: dict[int, torch.Tensor]
    ) -> list[Output]:
        """Append a part's tokens to its sequence: those up to the first wrong guess count."""
        sequence = part.sequence
        sequence.num_in_flight -= part.num_due
        if not drawn:
            self._scheduler.publish(sequence)
            return []
        accepted = part.accepted(drawn)
        if self._speculation is not None and part.draft:
            self._speculation.observe(sequence, len(part.draft), len(accepted) - 1)
        sequence.num_scheduled -= len(drawn) - len(accepted)
        taken: list[int] = []
        reason: FinishReason | None = None
        for token in accepted:
            sequence.tokens.append(token)
            taken.append(token)
            if sequence.history is not None:
                sequence.history.add(token)
            try:
                reason = self._finish_reason(sequence, token)
            except InvalidRequest as error:
                self._leave(sequence)
                return [Failed(sequence.id, error.code, error.message, error.param)]
            if reason is not None:
                break
        self._scheduler.publish(sequence)
        if reason is not None:
            self._leave(sequence)
        num_top = sequence.sampling.num_logprobs
        scores = None
        if num_top is not None:
            scores = [
                describe(logprobs[row], token, num_top)
                for row, token in zip(rows, taken, strict=False)
            ]
        cached = 0 if sequence.is_reported else sequence.num_cached
        sequence.is_reported = True
        return [TokenDelta(sequence.id, taken, reason, cached, scores)]

    def _learn(self, parts: Rows[Part], seconds: float) -> None:
        """Tell speculation what a step without prompt chunks has cost."""
        if self._speculation is not None and all(part.num_due == part.num_rows for part in parts):
            num_rows = sum(part.num_rows for part in parts)
            self._speculation.observe_step(
                num_rows=num_rows, num_decoding=len(parts), seconds=seconds
            )

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        params = sequence.sampling
        if token in params.stop_token_ids:
            return FinishReason.STOP
        if token in self._eos_token_ids and not params.ignore_eos:
            return FinishReason.STOP
        if sequence.matcher is not None and sequence.matcher.advance(token):
            return FinishReason.STOP
        if sequence.num_output >= params.max_tokens:
            return FinishReason.LENGTH
        return None
