"""Runs the steps of a model with a multi-token prediction head, and the head at their end."""

import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from deepseek.engine.base import BeforePiece
from deepseek.engine.batch_scheduler import Part
from deepseek.engine.drafts import Guess
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.models.mtp import MTPDrafter
from deepseek.engine.mtp_speculation import MTPSpeculation
from deepseek.engine.runner import FinishedStep, PendingStep, PreparedStep, padded_index, prepare
from deepseek.engine.sampling import draw
from deepseek.engine.sequence import Sequence


class MTPRunner:
    """Runs steps at once, in the calling thread; see `deepseek.engine.runner.Runner`.

    The head's layer runs over every row, so that its attention state is whole wherever the
    target's is; its logits, which cost most of it, are computed for wanted guesses only.
    """

    is_asynchronous = False
    can_park = False

    def __init__(
        self,
        head: MTPDrafter,
        storage: KVStorage,
        *,
        speculation: MTPSpeculation,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        """Run `head.target`; `storage` is of `head.joint_kv_shape`."""
        self._head = head
        self._storage = storage
        self._speculation = speculation
        self._eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def run(self, parts: Rows[Part], *, previous: PendingStep | None) -> FinishedStep:
        """Run the step to its end, and guess what follows."""
        step = prepare(parts, block_tokens=self._storage.block_tokens, previous=previous)
        target = self._head.target
        states = target.states(step.batch, self._storage.layers[:-1])
        logits = target.logits(states if step.rows is None else states[step.rows])
        drawn = draw(logits[: step.num_due], parts, eos_token_ids=self._eos_token_ids)
        self._guess(step, states, _follow(parts, drawn.tokens.tolist()))
        return FinishedStep(parts, drawn)

    def park(self) -> None:
        """Do nothing: the device's memory is the host's."""

    def wake(self, before_piece: BeforePiece) -> None:
        """Do nothing."""

    def drop_host_copy(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Forget weights and state."""
        del self._head, self._storage

    def _guess(self, step: PreparedStep, states: torch.Tensor, following: "_Following") -> None:
        token_ids = torch.zeros_like(step.batch.token_ids)
        token_ids[: len(following.token_ids)] = torch.tensor(following.token_ids)
        drafted = self._head.states(states, token_ids, step.batch, self._storage.layers[-1])
        started_s = time.perf_counter()
        wanted = [
            e for e in following.ends if self._speculation.wants(e.sequence, num_new=e.num_new)
        ]
        guesses: list[tuple[Sequence, Guess]] = []
        if wanted:
            rows = padded_index([end.row for end in wanted])
            tokens = self._head.target.logits(drafted[rows]).argmax(dim=-1).tolist()
            guesses = [
                (end.sequence, Guess(len(end.sequence.tokens) + end.num_new, token))
                for end, token in zip(wanted, tokens, strict=False)
            ]
        self._speculation.offer(guesses, seconds=time.perf_counter() - started_s)


@dataclass(frozen=True, slots=True)
class _End:
    """Where a sequence's known tokens end once a step's are added."""

    sequence: Sequence
    row: int
    """Of the step; the one that yielded the last token that stands."""
    num_new: int
    """Tokens that the step adds."""


@dataclass(frozen=True, slots=True)
class _Following:
    """A step's rows as the head sees them."""

    token_ids: list[int]
    """The token after each row; after a wrong guess that of no use, until the place is computed
    again."""
    ends: list[_End]
    """Of the sequences that yielded a token."""


def _follow(parts: Rows[Part], drawn: list[int]) -> _Following:
    token_ids: list[int] = []
    ends: list[_End] = []
    first_due = 0
    for part in parts:
        sequence, first_row = part.sequence, len(token_ids)
        num_known = part.num_rows - part.num_due
        token_ids += sequence.tokens[part.start + 1 : part.start + 1 + num_known]
        own = drawn[first_due : first_due + part.num_due]
        token_ids += own
        first_due += part.num_due
        if own:
            num_new = len(part.accepted(own))
            ends.append(_End(sequence, first_row + num_known + num_new - 1, num_new))
    return _Following(token_ids, ends)
