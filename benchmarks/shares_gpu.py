"""Shares of one GPU: an 8B language model with nine tenths of it beside an encoder, both busy.

    python benchmarks/shares_gpu.py [--out DIR] [--seconds S]
    python benchmarks/shares_gpu.py --tiny          # small shapes on a processor: does it run?

A worker process, over engines with random weights in bfloat16; this process is its clients. Prints
rows as JSON lines and a table, and writes `shares_gpu.json`.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from engine_gpu_measures.llama_8b import write_llama_8b
from frame import RESULTS, Row, bound, fact, finish
from shares_measures.random_models import (
    BERT_BASE,
    TINY_BERT,
    TINY_LLAMA,
    write_bert,
    write_llama,
)
from shares_measures.steps import Steps, read_steps

from deepseek.core.qos import Priority, QoS
from deepseek.core.requests import EncodeRequest, GenerateRequest, SamplingParams, Task
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.serving.replica import Replica, RestartPolicy

CRITICAL, OTHER = "llm", "encoder"
RESERVED = 0.9
_WARM_UP_S = 5.0
_TEXT_TOKENS = 500_000
"""Prompts begin anywhere in a text so long: hardly any two begin alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the clients of both models keep under way."""

    chats: int
    prompt_tokens: int
    answer_tokens: int
    encodes: int
    sequences: int
    """Of one request of the encoder, as clients that embed documents send them."""
    sequence_tokens: int
    vocab: int


_FULL = Work(
    chats=64,
    prompt_tokens=512,
    answer_tokens=128,
    encodes=16,
    sequences=16,
    sequence_tokens=128,
    vocab=30000,
)
_TINY = Work(
    chats=8,
    prompt_tokens=64,
    answer_tokens=16,
    encodes=8,
    sequences=4,
    sequence_tokens=64,
    vocab=1000,
)


class Clients:
    """Keeps a number of requests of each model under way, in token ids."""

    def __init__(self, work: Work, replica: Replica) -> None:
        self._work = work
        self._replica = replica
        self._random = random.Random(7)  # noqa: S311 - reproducible prompts
        # Drawn once: a draw per token would be the clients' limit, not the worker's.
        self._text = self._random.choices(range(2, work.vocab), k=_TEXT_TOKENS)

    async def busy(self, models: tuple[str, ...], *, for_s: float) -> dict[str, int]:
        """Send for so long; return how many requests of each model were answered meanwhile."""
        end_s = time.monotonic() + for_s
        answered = dict.fromkeys(models, 0)

        async def take_turns(model: str) -> None:
            while time.monotonic() < end_s:
                await (self._chat() if model == CRITICAL else self._encode())
                answered[model] += time.monotonic() < end_s

        counts = {CRITICAL: self._work.chats, OTHER: self._work.encodes}
        async with asyncio.TaskGroup() as group:
            for model in models:
                for _ in range(counts[model]):
                    group.create_task(take_turns(model))
        return answered

    async def _chat(self) -> None:
        sampling = SamplingParams(
            max_tokens=self._work.answer_tokens, temperature=0.0, ignore_eos=True
        )
        request = GenerateRequest(
            id=self._replica.next_id(),
            model=CRITICAL,
            prompt_token_ids=self._tokens(self._work.prompt_tokens),
            sampling=sampling,
        )
        async for _ in self._replica.stream(request):
            pass

    async def _encode(self) -> None:
        sequences = [self._tokens(self._work.sequence_tokens) for _ in range(self._work.sequences)]
        await self._replica.encode(
            EncodeRequest(id=self._replica.next_id(), model=OTHER, sequences=sequences)
        )

    def _tokens(self, count: int) -> list[int]:
        first = self._random.randrange(_TEXT_TOKENS - count)
        return self._text[first : first + count]


def main() -> int:
    """Measure both step policies and an idle critical model; print the rows."""
    arguments = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in measure(arguments, Path(scratch)):
            # At once: a run that is cut off has told what it measured.
            print(json.dumps(asdict(row)), flush=True)
            rows.append(row)
    if arguments.tiny:
        return 0
    return finish("shares_gpu", rows, results=arguments.out)


def measure(arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Yield the rows: both models busy under each policy, then the encoder alone."""
    work = _TINY if arguments.tiny else _FULL
    spec = _spec(scratch, tiny=arguments.tiny)
    seconds = arguments.seconds
    for policy, cases in (
        ("fair-share", {(CRITICAL, OTHER): seconds, (OTHER,): seconds / 3}),
        ("round-robin", {(CRITICAL, OTHER): seconds / 2}),
    ):
        record = scratch / f"{policy}.jsonl"
        used = msgspec.structs.replace(spec, step_policy=policy, step_record=str(record))
        spans = asyncio.run(run(used, work=work, cases=cases))
        steps = read_steps(record)
        for span in spans:
            yield from _rows(span, steps.between(span.start_s, span.end_s), policy=policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time in which some models were busy, without its beginning."""

    models: tuple[str, ...]
    start_s: float
    end_s: float
    answered_per_s: dict[str, float]


async def run(
    spec: WorkerSpec, *, work: Work, cases: Mapping[tuple[str, ...], float]
) -> list[Span]:
    """Start a worker and keep models of it busy, one case after the other."""
    replica = Replica(spec, RestartPolicy())
    await replica.start()
    spans: list[Span] = []
    try:
        for model in spec.models:
            replica.check(model.name)
        clients = Clients(work, replica)
        # Kernels are compiled, graphs captured, and policies learn what steps cost.
        await clients.busy((CRITICAL, OTHER), for_s=_WARM_UP_S)
        for models, seconds in cases.items():
            started_s = time.monotonic()
            answered = await clients.busy(models, for_s=seconds)
            spans.append(
                Span(
                    models=models,
                    start_s=started_s + seconds / 10,
                    end_s=started_s + seconds,
                    answered_per_s={name: count / seconds for name, count in answered.items()},
                )
            )
    finally:
        await replica.stop(grace_s=5)
    return spans


def _rows(span: Span, steps: Steps, *, policy: str) -> Iterator[Row]:
    wall_s = span.end_s - span.start_s
    if CRITICAL not in span.models:
        used = 100 * steps.seconds() / wall_s
        yield bound("LLM idle: the encoder's part of the time (%)", used, at_least=97)
    elif policy == "fair-share":
        yield from _shares(steps, wall_s)
    else:
        yield fact(f"- {policy}: LLM's part of device time (%)", 100 * steps.part(CRITICAL))
    case = f"{policy}, {' and '.join(span.models)} busy"
    for model, per_s in span.answered_per_s.items():
        yield fact(f"- {case}: {model}: requests answered per second", per_s)


def _shares(steps: Steps, wall_s: float) -> Iterator[Row]:
    part = 100 * steps.part(CRITICAL)
    yield bound("both busy: LLM's part of device time (%)", part, at_least=100 * RESERVED)
    worst = 100 * steps.worst_window(CRITICAL, window_s=1.0)
    yield bound("both busy: its part of the worst second (%)", worst, at_least=88)
    yield fact("- longest step of the LLM (ms)", 1000 * steps.longest_s(without=OTHER))
    yield fact("- longest step of the encoder (ms)", 1000 * steps.longest_s(without=CRITICAL))
    yield fact("- time between steps (%)", 100 * (1 - steps.seconds() / wall_s))


def _spec(scratch: Path, *, tiny: bool) -> WorkerSpec:
    llm = write_llama(scratch / "llama", TINY_LLAMA) if tiny else write_llama_8b(scratch)
    encoder = write_bert(scratch / "bert", TINY_BERT if tiny else BERT_BASE)
    dtype = "float32" if tiny else "bfloat16"
    critical = QoS(priority=Priority.CRITICAL, reserved_share=RESERVED)
    return WorkerSpec(
        pool="shares",
        socket_path="",
        device="cpu" if tiny else "cuda",
        models=[
            ModelSpec(
                name=CRITICAL,
                path=str(llm),
                task=Task.GENERATE,
                dtype=dtype,
                max_model_len=2048,
                qos=critical,
            ),
            ModelSpec(name=OTHER, path=str(encoder), task=Task.EMBED, dtype=dtype),
        ],
        num_threads=1 if tiny else None,
        kv_cache_bytes=64 * 1024**2 if tiny else 16 * 1024**3,
        max_running=_TINY.chats if tiny else _FULL.chats,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes on a processor")
    parser.add_argument("--seconds", type=float, help="how long both are busy")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.seconds is None:
        arguments.seconds = 6.0 if arguments.tiny else 30.0
    return arguments


if __name__ == "__main__":
    sys.exit(main())
