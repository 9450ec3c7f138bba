"""Output tokens per second, ours and `transformers serve`, one after the other."""

import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frame import Row, comparison
from tokenizers import Tokenizer

from deepseek.cli.load.answer import RequestRecord
from deepseek.weights.cache import ModelCache
from serving_measures.load import chat_records, output_tokens_per_s, story_requests
from serving_measures.platform import CHAT_MODEL, MeasurementFailed, Run, serve, write_deployment
from serving_measures.transformers_serve import MODES, Mode, answer_of, install, serve_peer

_TARGETS = {1: 1.5, 16: 3.0}
"""Concurrency and how many times the peer's rate ours must reach."""
_REQUESTS = {1: 3, 16: 32}
_HOPELESS = 0.5
"""A peer's mode that gives less than this part of its best one is not measured again."""
_WARM_UP_TOKENS = 16


@dataclass(slots=True)
class _Side:
    """What one server has shown."""

    rates: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    prompt_tokens: int = 0
    """Of the first round, as the server counts them."""
    text_tokens: int = 0
    """Of the first round's answers, by the model's own tokenizer: special tokens are not in it."""

    def median(self, concurrency: int) -> float:
        return statistics.median(self.rates[concurrency] or [0.0])


def throughput(run: Run) -> list[Row]:
    """Measure ours and each mode of the peer in turns, twice; medians, the peer's best mode.

    Same model directory, number format, prompts, answer length and load generator. Only the server
    being measured runs.
    """
    python = install()
    directory = ModelCache.default().path(CHAT_MODEL)
    bench = _Bench(run, directory, num_tokens=run.count(96, 24))
    ours, peers = _Side(), {mode.name: _Side() for mode in MODES}
    for round_number in range(run.count(2, 1)):
        bench.ours(ours, round_number)
        for mode in MODES:
            wanted = [
                concurrency
                for concurrency in _TARGETS
                if not round_number or _is_hopeful(peers, mode, concurrency)
            ]
            if wanted:
                bench.peer(peers[mode.name], mode, python, wanted, round_number)
    return _rows(ours, peers, num_tokens=bench.num_tokens)


class _Bench:
    """Starts a server, warms it up, loads it at each concurrency."""

    def __init__(self, run: Run, directory: Path, *, num_tokens: int) -> None:
        self._run = run
        self._directory = directory
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.num_tokens = num_tokens

    def ours(self, side: _Side, round_number: int) -> None:
        file = write_deployment(
            self._run.work / "throughput.yaml", chat={"dtype": "bfloat16"}, encoders=False
        )
        extra = {"temperature": 0, "ignore_eos": True}
        with serve(self._run, file, name="throughput") as platform:
            chat_records(
                platform.url,
                story_requests(2, max_tokens=_WARM_UP_TOKENS, seed="warm"),
                model=CHAT_MODEL,
                concurrency=2,
                extra_body=extra,
            )
            for concurrency in _TARGETS:
                records = self._load(platform.url, CHAT_MODEL, extra, concurrency, round_number)
                self._note(side, records, concurrency)

    def peer(
        self,
        side: _Side,
        mode: Mode,
        python: Path,
        concurrencies: Sequence[int],
        round_number: int,
    ) -> None:
        model = str(self._directory)
        try:
            with serve_peer(self._run, mode, self._directory, python=python) as url:
                chat_records(
                    url,
                    story_requests(2, max_tokens=_WARM_UP_TOKENS, seed="warm"),
                    model=model,
                    concurrency=2,
                    extra_body=answer_of(_WARM_UP_TOKENS),
                )
                for concurrency in concurrencies:
                    extra = answer_of(self.num_tokens)
                    records = self._load(url, model, extra, concurrency, round_number)
                    self._note(side, records, concurrency)
        except MeasurementFailed as failure:
            print(f"transformers serve, {mode.name}: not counted: {failure}", file=sys.stderr)

    def _load(
        self,
        url: str,
        model: str,
        extra: Mapping[str, object],
        concurrency: int,
        round_number: int,
    ) -> list[RequestRecord]:
        count = self._run.count(_REQUESTS[concurrency], concurrency)
        seed = f"throughput {round_number} {concurrency}"
        requests = story_requests(count, max_tokens=self.num_tokens, seed=seed)
        return chat_records(url, requests, model=model, concurrency=concurrency, extra_body=extra)

    def _note(self, side: _Side, records: Sequence[RequestRecord], concurrency: int) -> None:
        is_first = not side.rates[concurrency]
        rate = output_tokens_per_s(records, expected_tokens=self.num_tokens)
        side.rates[concurrency].append(rate)
        if is_first:
            side.prompt_tokens += sum(record.input_tokens or 0 for record in records)
            side.text_tokens += sum(
                len(self._tokenizer.encode(r.text, add_special_tokens=False).ids) for r in records
            )


def _is_hopeful(peers: Mapping[str, _Side], mode: Mode, concurrency: int) -> bool:
    best = max(side.median(concurrency) for side in peers.values())
    return peers[mode.name].median(concurrency) > _HOPELESS * best


def _rows(ours: _Side, peers: Mapping[str, _Side], *, num_tokens: int) -> list[Row]:
    rows = [
        comparison(
            f"output tokens/s at concurrency {concurrency}, bfloat16, {num_tokens} tokens each "
            f"(transformers serve, {name})",
            ours=ours.median(concurrency),
            peer=side.median(concurrency) or None,
            at_least=target,
        )
        for concurrency, target in _TARGETS.items()
        for name, side in peers.items()
    ]
    for name, side in peers.items():
        rows += [
            Row(
                measure=f"- prompt tokens of all requests, {name}",
                ours=ours.prompt_tokens,
                peer=side.prompt_tokens,
            ),
            Row(
                measure=f"- tokens of the answers' text, {name}",
                ours=ours.text_tokens,
                peer=side.text_tokens,
            ),
        ]
    return rows
