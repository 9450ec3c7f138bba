"""A run of batching policies as lines of JSON, and its replay: same calls, same decisions.

A record holds all that a policy's decisions may depend on: the QoS and limits that it began with,
the cost of every step (`observe`), every report of signals (`adjust`) with what was decided on it,
and every change of QoS (`reconfigure`). Calls of `ready_at` and `plan` are not recorded, so
decisions must not depend on them.

The policies of one worker write to one record. A record is replayed from its first line, so it may
be cut at the end, never at the beginning.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deepseek.core.decisions import Decision
from deepseek.core.errors import ConfigurationError
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import (
    BatchingPolicy,
    Demand,
    StepLimits,
    StepPlan,
    StepShape,
)
from deepseek.scheduling.batching.registry import policy_named_by


class Began(msgspec.Struct, tag="began", frozen=True, kw_only=True):
    """A policy was made, perhaps in place of an earlier one of the model."""

    model: str
    qos: dict[str, Any]
    limits: StepLimits


class Observed(msgspec.Struct, tag="step", frozen=True, kw_only=True, omit_defaults=True):
    """A step has cost this."""

    model: str
    shape: tuple[int, int, int, int, int]
    """Prefill tokens, decoding, context tokens, sequences, prefill pairs."""
    seconds: float
    is_out_of_memory: bool = False


class Adjusted(msgspec.Struct, tag="signals", frozen=True, kw_only=True):
    """Signals were taken, and these decisions made."""

    model: str
    now_s: float
    load: ModelLoad
    device: DeviceLoad
    decisions: list[dict[str, Any]]


class Reconfigured(msgspec.Struct, tag="qos", frozen=True, kw_only=True):
    """A policy took other settings."""

    model: str
    qos: dict[str, Any]


class Ended(msgspec.Struct, tag="ended", frozen=True, kw_only=True):
    """The record ends here, though the run went on."""

    reason: str


Line = Began | Observed | Adjusted | Reconfigured | Ended

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode_line(line: Line) -> bytes:
    """Return a line without its end."""
    return _encode(line)


class RecordedPolicy:
    """A policy whose inputs and decisions are written down; itself a `BatchingPolicy`."""

    def __init__(
        self, qos: QoS, model: str, limits: StepLimits, *, write: Callable[[Line], None]
    ) -> None:
        """Make the policy that `qos` names and write to `write`, which must not raise."""
        self._policy: BatchingPolicy = policy_named_by(qos, model, limits)
        self._model = model
        self._write = write
        write(Began(model=model, qos=_qos_fields(qos), limits=limits))

    def ready_at(self, demand: Demand) -> float:
        """Forward; not recorded."""
        return self._policy.ready_at(demand)

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Forward; not recorded."""
        return self._policy.plan(demand, max_step_s=max_step_s)

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        """Record and forward."""
        held = (
            shape.num_prefill_tokens,
            shape.num_decoding,
            shape.num_context_tokens,
            shape.num_sequences,
            shape.num_prefill_pairs,
        )
        self._write(
            Observed(
                model=self._model, shape=held, seconds=seconds, is_out_of_memory=is_out_of_memory
            )
        )
        self._policy.observe(shape, seconds=seconds, is_out_of_memory=is_out_of_memory)

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Forward and record, with what was decided."""
        decisions = self._policy.adjust(load, device, now_s=now_s)
        self._write(
            Adjusted(
                model=self._model,
                now_s=now_s,
                load=load,
                device=device,
                decisions=[msgspec.to_builtins(decision) for decision in decisions],
            )
        )
        return decisions

    def reconfigure(self, qos: QoS) -> None:
        """Record and forward."""
        self._write(Reconfigured(model=self._model, qos=_qos_fields(qos)))
        self._policy.reconfigure(qos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A report of signals on which the replay decided otherwise."""

    line: int
    recorded: list[dict[str, Any]]
    replayed: list[dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class ReplayedModel:
    """One model's part of a record."""

    policies: list[str] = field(default_factory=list)
    """Names of its policies, in the order in which they were made."""
    num_steps: int = 0
    num_reports: int = 0
    num_decisions: int = 0
    differences: list[Difference] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Replay:
    """What came of a replay."""

    models: dict[str, ReplayedModel] = field(default_factory=dict)
    ended: str | None = None
    """Why the record ends before the run did, where it says so."""

    @property
    def is_same(self) -> bool:
        """True where every recorded decision was made again, and no other."""
        return not any(model.differences for model in self.models.values())


def replay(lines: Iterable[bytes]) -> Replay:
    """Give the recorded inputs to new policies of the same names and compare their decisions.

    A last line that is cut short, as a killed worker leaves it, is passed over. Raises
    `ConfigurationError` naming the line that is none of a record's, or the policy that is not here.
    """
    result = Replay()
    policies: dict[str, BatchingPolicy] = {}
    for number, text in enumerate(lines, start=1):
        line = _decode(text, number)
        if line is not None:
            _replay_line(line, number, policies, result)
    return result


def _decode(text: bytes, number: int) -> Line | None:
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError as error:
        if not text.endswith(b"\n"):
            return None
        raise ConfigurationError(
            f"line {number} is not a line of a decision record: {error}"
        ) from None


def _replay_line(
    line: Line, number: int, policies: dict[str, BatchingPolicy], result: Replay
) -> None:
    if isinstance(line, Ended):
        result.ended = line.reason
        return
    if isinstance(line, Began):
        qos = _qos(line.qos)
        policies[line.model] = policy_named_by(qos, line.model, line.limits)
        result.models.setdefault(line.model, ReplayedModel()).policies.append(qos.policy)
        return
    if line.model not in policies:
        raise ConfigurationError(
            f"line {number}: the record does not say how the policy of {line.model!r} began; "
            "replay a record from its beginning"
        )
    policy, model = policies[line.model], result.models[line.model]
    match line:
        case Observed():
            model.num_steps += 1
            policy.observe(
                _shape(line.shape), seconds=line.seconds, is_out_of_memory=line.is_out_of_memory
            )
        case Adjusted():
            decisions = policy.adjust(line.load, line.device, now_s=line.now_s)
            # Through JSON, as the recorded ones went: there a tuple is a list, an infinity null.
            replayed = msgspec.json.decode(_encode(decisions))
            model.num_reports += 1
            model.num_decisions += len(line.decisions)
            if replayed != line.decisions:
                model.differences.append(
                    Difference(line=number, recorded=line.decisions, replayed=replayed)
                )
        case Reconfigured():
            policy.reconfigure(_qos(line.qos))


def _shape(held: tuple[int, int, int, int, int]) -> StepShape:
    prefill, decoding, context, sequences, pairs = held
    return StepShape(
        num_prefill_tokens=prefill,
        num_decoding=decoding,
        num_context_tokens=context,
        num_sequences=sequences,
        num_prefill_pairs=pairs,
    )


def _qos_fields(qos: QoS) -> dict[str, Any]:
    """Return the settings but the infinite ones: JSON has no infinity, and they are defaults."""
    fields: dict[str, Any] = msgspec.to_builtins(qos)
    return {name: value for name, value in fields.items() if value != math.inf}


def _qos(fields: dict[str, Any]) -> QoS:
    try:
        return msgspec.convert(fields, QoS)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"the record holds no QoS of this version: {error}") from None
