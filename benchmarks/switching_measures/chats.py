"""Streaming chats in fixed precisions, alternating, and half of them in each.

Greedy answers of exactly so many tokens to prompts of about 54, through our HTTP server. The nested
model is one server: its fixed precisions and their mixture take turns on it, round by round, so
that a machine that grows slower does so for all of them. At concurrency 1 the mixture alternates
from answer to answer; at 16 half of a batch is in either precision.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from engine_measures.placement import Placement, require_placed, running_on
from frame import Row, bound, comparison, fact
from serving_measures.load import chat_report, output_tokens_per_s, story_requests
from serving_measures.platform import CHAT_MODEL, Run, serve, write_deployment

from deepseek.cli.load.plan import PlannedRequest
from switching_measures import eager

_CONCURRENCIES = (1, 16)
_EXACT_LENGTH = {"temperature": 0, "ignore_eos": True}
_INT8, _INT4, _MIXED = ("int8",), ("int4",), ("int8", "int4")
_AT_LEAST = {_INT8: 2.8, _INT4: 3.4}
"""How many times the rate of transformers in bfloat16."""
_LEAST_OF_MEAN = 0.97
"""Part of the fixed precisions' mean that their mixture keeps."""


@dataclass(frozen=True, slots=True)
class _Server:
    """One way to serve the model, and the precisions that take turns on it."""

    name: str
    chat: Mapping[str, str]
    turns: Sequence[tuple[str, ...]] = ((),)


_SERVERS = (
    _Server("bfloat16", {"dtype": "bfloat16"}),
    _Server("plain INT8", {"quantization": "int8"}),
    _Server("nested", {"quantization": "nested"}, (_INT8, _INT4, _MIXED)),
)
_Rates = dict[tuple[str, tuple[str, ...], int], float]
"""Output tokens/s by server, precisions and concurrency."""


def chats(run: Run, placement: Placement, *, details: dict[str, Any]) -> list[Row]:
    """Measure all servers one after the other in one placement, then transformers."""
    rates: _Rates = {}
    for server in _SERVERS:
        with _served(run, server, placement) as url:
            for concurrency in _CONCURRENCIES:
                rates |= _measure(run, server, url, concurrency=concurrency)
            require_placed(placement.server_cores)
    peer = {
        concurrency: eager.tokens_per_s(
            [request.text for request in _requests(run, concurrency, rounds=1, seed="eager")],
            num_tokens=_num_tokens(run),
            placement=placement,
        )
        for concurrency in _CONCURRENCIES
    }
    details[placement.name] = {
        "output tokens/s": [
            {"server": name, "precisions": list(turn), "concurrency": concurrency, "rate": rate}
            for (name, turn, concurrency), rate in rates.items()
        ],
        "transformers, bfloat16": peer,
    }
    return [row for c in _CONCURRENCIES for row in _rows(rates, peer[c], placement, concurrency=c)]


@contextmanager
def _served(run: Run, server: _Server, placement: Placement) -> Iterator[str]:
    name = f"{placement.name} {server.name}".replace(" ", "-")
    file = write_deployment(run.work / f"{name}.yaml", chat=server.chat, encoders=False)
    with ExitStack() as stack:
        with running_on(placement.server_cores):
            platform = stack.enter_context(serve(run, file, name=name))
        stack.enter_context(running_on(placement.client_cores))
        yield platform.url


def _measure(run: Run, server: _Server, url: str, *, concurrency: int) -> _Rates:
    """Return each turn's rate over all rounds; a round before them is not counted."""
    seconds = dict.fromkeys(server.turns, 0.0)
    num_tokens = 0
    for number in range(run.count(4, 1) + 1):
        for turn in server.turns:
            requests = _requests(run, concurrency, rounds=2, seed=f"{server.name} {number} {turn}")
            report = chat_report(
                url,
                _in_turn(requests, turn),
                model=CHAT_MODEL,
                concurrency=concurrency,
                extra_body=_EXACT_LENGTH,
            )
            rate = output_tokens_per_s(report.records, expected_tokens=_num_tokens(run))
            if number:
                seconds[turn] += len(requests) * _num_tokens(run) / rate
        num_tokens += len(requests) * _num_tokens(run) if number else 0
    return {
        (server.name, turn, concurrency): num_tokens / spent_s for turn, spent_s in seconds.items()
    }


def _requests(run: Run, concurrency: int, *, rounds: int, seed: str) -> list[PlannedRequest]:
    return story_requests(concurrency * rounds, max_tokens=_num_tokens(run), seed=seed)


def _in_turn(
    requests: Sequence[PlannedRequest], precisions: tuple[str, ...]
) -> list[PlannedRequest]:
    """Return the requests, each naming the next of the precisions; none where there are none."""
    if not precisions:
        return list(requests)
    return [
        replace(request, extra_body={"precision": precision})
        for request, precision in zip(requests, cycle(precisions), strict=False)
    ]


def _num_tokens(run: Run) -> int:
    return run.count(96, 16)


def _rows(rates: _Rates, peer: float, placement: Placement, *, concurrency: int) -> list[Row]:
    head = f"{placement.name}, {concurrency} streams: output tokens/s"
    fixed = [rates["nested", turn, concurrency] for turn in (_INT8, _INT4)]
    # Half of the tokens at each rate: the mean is that of the times.
    mean = 2 / sum(1 / rate for rate in fixed)
    mixed = rates["nested", _MIXED, concurrency]
    how = "alternating" if concurrency == 1 else "half in each"
    return [
        comparison(
            f"{head}, bfloat16 (transformers, bfloat16)",
            ours=rates["bfloat16", (), concurrency],
            peer=peer,
        ),
        fact(f"{head}, plain INT8", rates["plain INT8", (), concurrency]),
        *(
            comparison(
                f"{head}, nested {turn[0].upper()} (transformers, bfloat16)",
                ours=rates["nested", turn, concurrency],
                peer=peer,
                at_least=at_least,
            )
            for turn, at_least in _AT_LEAST.items()
        ),
        fact(f"{head}, nested, {how}", mixed),
        bound(
            f"{placement.name}, {concurrency} streams: {how}, part of the fixed precisions' mean",
            mixed / mean,
            at_least=_LEAST_OF_MEAN,
        ),
    ]
