"""Drawing the next token of every sequence of a step.

Greedy rows of a batch share one `argmax`. A sampled row is drawn by inverting the cumulative
distribution at one uniform number of the sequence's own generator, so that a seed gives the same
answer whatever else is in the batch.
"""

from collections.abc import Sequence as Rows

import torch

from deepseek.core.requests import SamplingParams, TokenLogprobs
from deepseek.engine.sequence import Sequence, TokenHistory

_HEAD = 512
"""Most probable tokens looked at first; nearly every nucleus lies inside, and a full sort of the
vocabulary costs some 25 times as much (3.5 and 0.13 ms for 49,152 tokens, two cores)."""


def sample(
    logits: torch.Tensor, sequences: Rows[Sequence], *, eos_token_ids: Rows[int]
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Draw one token per row of `logits` (rows, vocab), float32, which is overwritten.

    Returns the token ids and, for rows that ask for them, log-probabilities.
    """
    raw = [
        torch.log_softmax(logits[row], dim=-1)
        if _params(sequence).num_logprobs is not None
        else None
        for row, sequence in enumerate(sequences)
    ]
    for row, sequence in enumerate(sequences):
        _shape(logits[row], sequence, eos_token_ids)
    tokens = logits.argmax(dim=-1).tolist()
    for row, sequence in enumerate(sequences):
        params = _params(sequence)
        if params.temperature > 0:
            tokens[row] = _draw(logits[row], params, sequence.generator.random())
    return tokens, [
        None if scores is None else _logprobs(scores, token, _params(sequence).num_logprobs or 0)
        for scores, token, sequence in zip(raw, tokens, sequences, strict=True)
    ]


def history(params: SamplingParams, prompt: list[int], vocab_size: int) -> TokenHistory | None:
    """Return a history for requests that penalise repetition, else None."""
    penalised = params.presence_penalty or params.frequency_penalty
    if not penalised and params.repetition_penalty == 1.0:
        return None
    seen = torch.zeros(vocab_size, dtype=torch.bool)
    seen[torch.tensor(prompt)] = True
    return TokenHistory(output_counts=torch.zeros(vocab_size), seen=seen)


def _params(sequence: Sequence) -> SamplingParams:
    return sequence.request.sampling


def _shape(row: torch.Tensor, sequence: Sequence, eos_token_ids: Rows[int]) -> None:
    """Apply bias, penalties and bans to one row, in place."""
    params = _params(sequence)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), device=row.device)
    if sequence.history is not None:
        _penalise(row, params, sequence.history)
    if sequence.num_output < params.min_tokens:
        banned = [*eos_token_ids, *params.stop_token_ids]
        row[torch.tensor(banned, dtype=torch.long, device=row.device)] = float("-inf")
    if sequence.matcher is not None:
        row[sequence.matcher.forbidden().to(row.device)] = float("-inf")


def _penalise(row: torch.Tensor, params: SamplingParams, past: TokenHistory) -> None:
    counts, seen = past.output_counts.to(row.device), past.seen.to(row.device)
    if params.repetition_penalty != 1.0:
        factor = torch.where(row > 0, 1.0 / params.repetition_penalty, params.repetition_penalty)
        row *= torch.where(seen, factor, 1.0)
    row -= params.frequency_penalty * counts
    row -= params.presence_penalty * (counts > 0)


def _draw(row: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    """Invert the filtered distribution of one row at `uniform` in [0, 1)."""
    scaled = row / params.temperature
    if params.top_k == 0 and params.top_p >= 1.0 and params.min_p <= 0.0:
        return _invert(torch.softmax(scaled, dim=-1), uniform)
    total = torch.logsumexp(scaled, dim=-1)
    head = min(params.top_k or _HEAD, scaled.numel())
    top, ids = scaled.topk(head)
    probs = (top - total).exp()
    # The head decides alone when top_k, or the nucleus, or the min_p threshold ends inside it.
    decided = (
        params.top_k > 0
        or (params.top_p < 1.0 and float(probs.sum()) >= params.top_p)
        or (params.min_p > 0 and float(probs[-1]) < params.min_p * float(probs[0]))
    )
    if not decided:
        top, ids = scaled.sort(descending=True)
        probs = (top - total).exp()
    if params.top_k > 0:
        probs = probs / probs.sum()
    kept = torch.ones_like(probs, dtype=torch.bool)
    if params.top_p < 1.0:
        kept &= probs.cumsum(dim=-1) - probs < params.top_p
    if params.min_p > 0.0:
        kept &= probs >= params.min_p * probs[0]
    kept[0] = True
    return int(ids[_invert(probs * kept, uniform)])


def _invert(probs: torch.Tensor, uniform: float) -> int:
    """Return the index at which the running sum of `probs` passes `uniform` of its total."""
    cumulative = probs.double().cumsum(dim=-1)
    target = uniform * cumulative[-1]
    index = int(torch.searchsorted(cumulative, target, right=True))
    return min(index, probs.numel() - 1)


def _logprobs(scores: torch.Tensor, token: int, num_top: int) -> TokenLogprobs:
    top: list[tuple[int, float]] = []
    if num_top:
        values, ids = scores.topk(min(num_top, scores.numel()))
        top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(chosen=float(scores[token]), top=top)
