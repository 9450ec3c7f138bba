"""Streaming chats at several concurrencies: output tokens/s, time to first token, between tokens.

Each server in turn, alone on its cores, under the same generator with the same prompts: about 54
prompt tokens, greedy answers of exactly 96 tokens. A server that answers with another number of
tokens, or strays from its cores, does not count.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from frame import Row, ServerFailed, comparison
from rich.console import Console
from rich.table import Table
from serving_measures.load import chat_report, output_tokens_per_s, story_requests
from serving_measures.platform import CHAT_MODEL, MeasurementFailed, Run
from tokenizers import Tokenizer

from deepseek.cli.load.report import LatencySummary, LoadReport
from deepseek.weights.cache import ModelCache
from engine_measures import openvino_genai
from engine_measures.contestants import (
    CONTESTANTS,
    LLAMA_CPP,
    OPENVINO,
    OURS_BF16,
    OURS_INT8,
    TRANSFORMERS,
    VLLM,
    Contestant,
)
from engine_measures.placement import Placement, require_placed, running_on

_ROUNDS = {1: 4, 16: 3, 32: 2}
"""Concurrency, and how many requests each of so many clients sends one after the other."""
_SLOW_TOKENS_PER_S = 150
"""A peer below this at 16 streams is measured with fewer rounds at 32, where it has no target."""
_WARM_UP_TOKENS = 16
_TABLE_WIDTH = 100
_IN_PROCESS = "openvino (in process)"


@dataclass(frozen=True, slots=True)
class _Target:
    """How many times the peer's rate ours must reach; None: only reported."""

    ours: Contestant
    peer: Contestant
    at_least: Mapping[int, float] = field(default_factory=dict)


_TARGETS = (
    _Target(OURS_BF16, VLLM, {1: 1.2, 16: 1.2}),
    _Target(OURS_BF16, TRANSFORMERS),
    _Target(OURS_INT8, OPENVINO, {16: 1.1, 32: 1.1}),
    _Target(OURS_INT8, LLAMA_CPP, {1: 0.8}),
    _Target(OURS_INT8, VLLM),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one server showed at one concurrency."""

    output_tokens_per_s: float
    ttft: LatencySummary = field(default_factory=LatencySummary)
    inter_token: LatencySummary = field(default_factory=LatencySummary)
    num_requests: int
    prompt_tokens: int = 0
    """Of all requests, as the server counts them."""
    text_tokens: int = 0
    """Of all answers' text, by the model's own tokenizer: special tokens are not in it."""
    client_cpu_s: float = 0.0


Samples = dict[tuple[str, int], Sample]
"""By the server's name and the concurrency."""


def chat(
    run: Run, placement: Placement, *, names: Sequence[str] | None, details: dict[str, Any]
) -> list[Row]:
    """Measure the servers (all, or those named) one after the other in one placement."""
    bench = _Bench(run, placement)
    samples: Samples = {}
    for name in names or CONTESTANTS:
        contestant = CONTESTANTS[name]
        try:
            samples |= bench.measure(contestant)
        except (MeasurementFailed, ServerFailed) as failure:
            print(f"{name}, {placement.name}: not counted: {failure}", file=sys.stderr)
        if contestant is OPENVINO:
            samples |= bench.in_process()
    _print(samples, placement)
    details[f"chat, {placement.name}"] = [
        {"server": name, "concurrency": concurrency, **asdict(sample)}
        for (name, concurrency), sample in samples.items()
    ]
    return _rows(samples, placement, is_selection=names is not None)


class _Bench:
    """Starts a server, warms it up, loads it at each concurrency."""

    def __init__(self, run: Run, placement: Placement) -> None:
        directory = ModelCache.default().path(CHAT_MODEL)
        self._run = run
        self._placement = placement
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._num_tokens = run.count(96, 16)

    def measure(self, contestant: Contestant) -> Samples:
        samples: Samples = {}
        with ExitStack() as stack:
            with running_on(self._placement.server_cores):
                served = contestant.serve(self._run, self._placement.num_threads)
                endpoint = stack.enter_context(served)
            stack.enter_context(running_on(self._placement.client_cores))
            for concurrency in (1, max(_ROUNDS)):
                chat_report(
                    endpoint.url,
                    story_requests(
                        concurrency, max_tokens=_WARM_UP_TOKENS, seed=f"warm {concurrency}"
                    ),
                    model=endpoint.model,
                    concurrency=concurrency,
                    extra_body=contestant.greedy_body(_WARM_UP_TOKENS),
                )
            require_placed(self._placement.server_cores)
            for concurrency in _ROUNDS:
                report = chat_report(
                    endpoint.url,
                    story_requests(
                        self._num_requests(concurrency, samples, contestant),
                        max_tokens=self._num_tokens,
                        seed=_seed(concurrency),
                    ),
                    model=endpoint.model,
                    concurrency=concurrency,
                    extra_body=contestant.greedy_body(self._num_tokens),
                )
                samples[contestant.name, concurrency] = self._sample(report)
            require_placed(self._placement.server_cores)
        return samples

    def in_process(self) -> Samples:
        """Measure OpenVINO GenAI without a server, on the same cores with the same prompts."""
        samples: Samples = {}
        for concurrency in _ROUNDS:
            count = self._num_requests(concurrency, samples, OPENVINO)
            requests = story_requests(count, max_tokens=self._num_tokens, seed=_seed(concurrency))
            with running_on(self._placement.server_cores):
                rate = openvino_genai.in_process(
                    [request.text for request in requests],
                    concurrency=concurrency,
                    num_tokens=self._num_tokens,
                    num_threads=self._placement.num_threads,
                )
            samples[_IN_PROCESS, concurrency] = Sample(output_tokens_per_s=rate, num_requests=count)
        return samples

    def _num_requests(self, concurrency: int, samples: Samples, contestant: Contestant) -> int:
        before = samples.get((contestant.name, 16))
        is_slow = before is not None and before.output_tokens_per_s < _SLOW_TOKENS_PER_S
        rounds = 1 if is_slow else self._run.count(_ROUNDS[concurrency], 1)
        return rounds * concurrency

    def _sample(self, report: LoadReport) -> Sample:
        rate = output_tokens_per_s(report.records, expected_tokens=self._num_tokens)
        texts = [record.text for record in report.records]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return Sample(
            output_tokens_per_s=round(rate, 2),
            ttft=report.ttft,
            inter_token=report.inter_token,
            num_requests=report.num_requests,
            prompt_tokens=report.input_tokens,
            text_tokens=sum(len(encoding.ids) for encoding in encodings),
            client_cpu_s=report.client_cpu_s,
        )


def _seed(concurrency: int) -> str:
    """Each load has prompts of its own, which no prefix cache knows; all servers get the same."""
    return f"engine {concurrency}"


def _rows(samples: Samples, placement: Placement, *, is_selection: bool) -> list[Row]:
    rows: list[Row] = []
    for target in _TARGETS:
        for concurrency in _ROUNDS:
            ours = samples.get((target.ours.name, concurrency))
            peer = samples.get((target.peer.name, concurrency))
            if is_selection and (ours is None or peer is None):
                continue
            rows.append(
                comparison(
                    f"{placement.name}, {concurrency} streams: output tokens/s, "
                    f"{target.ours.weights} ({target.peer.name}, {target.peer.weights})",
                    ours=ours.output_tokens_per_s if ours else float("nan"),
                    peer=peer.output_tokens_per_s if peer else None,
                    at_least=target.at_least.get(concurrency),
                )
            )
    return rows + _in_process_rows(samples, placement) + _first_token_rows(samples, placement)


def _in_process_rows(samples: Samples, placement: Placement) -> list[Row]:
    return [
        comparison(
            f"{placement.name}, {concurrency} streams: output tokens/s, INT8 over HTTP "
            f"({_IN_PROCESS})",
            ours=ours.output_tokens_per_s,
            peer=peer.output_tokens_per_s,
        )
        for concurrency in _ROUNDS
        if (ours := samples.get((OURS_INT8.name, concurrency)))
        and (peer := samples.get((_IN_PROCESS, concurrency)))
    ]


def _first_token_rows(samples: Samples, placement: Placement) -> list[Row]:
    """Ours in each format against the fastest of the peers."""
    peers = {
        name: samples[name, 16].ttft.p50_ms
        for name, contestant in CONTESTANTS.items()
        if not contestant.is_ours and (name, 16) in samples
    }
    if not peers:
        return []
    best = min(peers, key=peers.__getitem__)
    return [
        comparison(
            f"{placement.name}, 16 streams: time to first token p50 (ms), {ours.weights} "
            f"(the best peer: {best})",
            ours=samples[ours.name, 16].ttft.p50_ms,
            peer=peers[best],
            at_least=1.0,
            lower_is_better=True,
        )
        for ours in (OURS_INT8, OURS_BF16)
        if (ours.name, 16) in samples
    ]


def _print(samples: Samples, placement: Placement) -> None:
    """Show every sample; the rows compare only what has to do with one another."""
    table = Table(title=f"chat, {placement.name}; latencies in ms", title_justify="left")
    table.add_column("server", no_wrap=True)
    for column in ("streams", "tok/s", "TTFT p50", "p99", "ITL p50", "p99", "text tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for (name, concurrency), sample in samples.items():
        latencies = (
            sample.ttft.p50_ms,
            sample.ttft.p99_ms,
            sample.inter_token.p50_ms,
            sample.inter_token.p99_ms,
        )
        has_latencies = sample.ttft.num > 0
        table.add_row(
            name,
            str(concurrency),
            f"{sample.output_tokens_per_s:.1f}",
            *(f"{value:.1f}" if has_latencies else "" for value in latencies),
            f"{sample.text_tokens / sample.num_requests:.1f}" if has_latencies else "",
        )
    Console(highlight=False, width=_TABLE_WIDTH).print(table)
