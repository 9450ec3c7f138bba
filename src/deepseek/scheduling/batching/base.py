"""The plug-in point of batching policies: entry-point group `deepseek.batching_policies`.

A policy decides on three time scales and holds no clock, socket or tensor: every call says what
time it is, so that the same object serves a worker, the simulator and the replay of a recorded run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deepseek.core.decisions import Decision
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS


class QueuedRequest(Protocol):
    """What a policy sees of a sequence, waiting or running. Policies only read it."""

    @property
    def id(self) -> int: ...
    @property
    def arrived_s(self) -> float:
        """When it came, on the clock of `Demand.now_s`."""
        ...

    @property
    def due_s(self) -> float:
        """When its next token, or an encoder's answer, is due; infinite where nothing is."""
        ...

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next one is drawn; 1 while decoding."""
        ...

    @property
    def num_computed(self) -> int:
        """Tokens of context computed so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What a step of this model may never exceed, whatever a policy says."""

    max_tokens: int
    max_sequences: int


@dataclass(slots=True, kw_only=True)
class Demand:
    """One model's queue between two steps."""

    now_s: float
    waiting: Sequence[QueuedRequest]
    """Not begun, in order of arrival."""
    running: Sequence[QueuedRequest]
    """Begun and not finished, in order of admission."""
    is_in_flight: bool = False
    """The device works ahead: results will come without another step, and must be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What the next step may hold."""

    max_tokens: int
    max_sequences: int
    """Running sequences, those admitted in this step included."""
    order: Sequence[QueuedRequest] | None = None
    """Waiting requests in the order in which they are to be admitted; those left out stay in the
    queue. None: all, by arrival."""
    refused: Sequence[QueuedRequest] = ()
    """Waiting requests to be answered with 503 now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What a step held: the features of its cost."""

    num_prefill_tokens: int
    """Rows of prompt chunks, or all tokens of an encoder's step."""
    num_decoding: int
    """Sequences that computed one row each (guesses not counted)."""
    num_context_tokens: int
    """Tokens of context that the step's rows attended to, summed over its sequences."""
    num_sequences: int
    num_prefill_pairs: int = 0
    """Pairs of a prompt's row and a token that it attends to (`prompt_pairs`): what attention
    computes for prompts; 0 where the engine does not tell."""


NOTHING = StepShape(num_prefill_tokens=0, num_decoding=0, num_context_tokens=0, num_sequences=0)


def prompt_pairs(num_rows: int, *, start: int) -> int:
    """Return the pairs of a chunk of `num_rows` rows that begins at token `start` of its prompt."""
    return num_rows * start + num_rows * (num_rows + 1) // 2


class BatchingPolicy(Protocol):
    """Decides for one model; made by `make(model, qos, limits)` of its registry entry."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None: ...

    def ready_at(self, demand: Demand) -> float:
        """Return when the next step should start: `demand.now_s` or earlier for at once.

        Called only where somebody waits or runs. Cheap: called for every model before every step.
        Returns at most the oldest arrival plus `max_wait_s` (a step held back since its last token
        counts from then).
        """
        ...

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Return what the step that starts now may hold.

        `max_step_s`: what the sharing of the device allows this step (infinite: no bound). Within
        `StepLimits`; allows at least one token of one sequence.
        """
        ...

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        """Learn what a step has cost, or that it found no memory."""
        ...

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Take the signals, every 0.25 to 1 s (and decide the slow loop's part every 10 s of them).

        The only place where decisions are logged: same calls, same decisions.
        """
        ...

    def reconfigure(self, qos: QoS) -> None:
        """Take new settings from the next step on; what has been learned stays."""
        ...
