"""Shares of one GPU: an 8B language model with nine tenths of it beside an encoder, both busy.

    python benchmarks/shares_gpu.py [--out DIR] [--seconds S]
    python benchmarks/shares_gpu.py --tiny          # small shapes on a processor: does it run?

The worker's step loop in this process, over engines with random weights in bfloat16. Prints rows as
JSON lines and a table, and writes `shares_gpu.json`.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

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
from deepseek.core.wire import (
    Command,
    Encode,
    Encoded,
    Event,
    Failed,
    Generate,
    ModelSpec,
    StepOutput,
    Stop,
    WorkerSpec,
)
from deepseek.engine.device import prepare_device
from deepseek.engine.hosted_model import HostedModel
from deepseek.engine.loading import load_engine
from deepseek.engine.step_loop import Inbox, StepLoop
from deepseek.engine.step_record import StepRecord
from deepseek.scheduling.batching.registry import make_batching_policy
from deepseek.scheduling.sharing.registry import make_step_policy
from deepseek.telemetry.meters import ModelMeter
from deepseek.telemetry.sampling import DeviceSampler
from deepseek.telemetry.sensors.registry import make_sensor

CRITICAL, OTHER = "llm", "encoder"
RESERVED = 0.9
_MAX_STEP_S = 0.01
_TEXT_TOKENS = 500_000
"""Prompts begin anywhere in a text so long: hardly any two begin alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the clients of both models keep under way."""

    chats: int
    prompt_tokens: int
    answer_tokens: int
    encodes: int
    sequence_tokens: int
    vocab: int


_FULL = Work(
    chats=64, prompt_tokens=512, answer_tokens=128, encodes=256, sequence_tokens=128, vocab=30000
)
_TINY = Work(
    chats=8, prompt_tokens=64, answer_tokens=16, encodes=32, sequence_tokens=64, vocab=1000
)


class Clients:
    """Sends a new request for each that has been answered; called from the loop's thread."""

    def __init__(self, work: Work, commands: Inbox) -> None:
        self._work = work
        self._commands = commands
        self._ids = itertools.count()
        self._random = random.Random(7)  # noqa: S311 - reproducible prompts
        # Drawn once: a draw per token, in the loop's thread, would be seen between the steps.
        self._text = self._random.choices(range(2, work.vocab), k=_TEXT_TOKENS)
        self.is_over = False
        self.num_answered = {CRITICAL: 0, OTHER: 0}

    def begin(self, models: tuple[str, ...]) -> None:
        """Send as much as is to be under way."""
        counts = {CRITICAL: self._work.chats, OTHER: self._work.encodes}
        for model in models:
            for _ in range(counts[model]):
                self._send(model)

    def take(self, event: Event) -> None:
        """Count an answer and send the next request; raises where one failed."""
        match event:
            case StepOutput(deltas):
                for delta in deltas:
                    if delta.finish_reason is not None:
                        self._answered(CRITICAL)
            case Encoded():
                self._answered(OTHER)
            case Failed():
                raise RuntimeError(f"request {event.id} failed: {event.message}")
            case _:
                pass

    def _answered(self, model: str) -> None:
        self.num_answered[model] += 1
        if not self.is_over:
            self._send(model)

    def _send(self, model: str) -> None:
        self._commands.put(self._chat() if model == CRITICAL else self._encode())

    def _chat(self) -> Command:
        sampling = SamplingParams(
            max_tokens=self._work.answer_tokens, temperature=0.0, ignore_eos=True
        )
        prompt = self._tokens(self._work.prompt_tokens)
        request = GenerateRequest(
            id=next(self._ids), model=CRITICAL, prompt_token_ids=prompt, sampling=sampling
        )
        return Generate([request])

    def _encode(self) -> Command:
        sequence = self._tokens(self._work.sequence_tokens)
        return Encode(EncodeRequest(id=next(self._ids), model=OTHER, sequences=[sequence]))

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
    spec = _spec(scratch, tiny=arguments.tiny)
    device = prepare_device(spec)
    engines = [load_engine(model, spec, device=device)[0] for model in spec.models]
    work = _TINY if arguments.tiny else _FULL
    both, alone = (CRITICAL, OTHER), (OTHER,)
    cases = (
        ("fair-share", both, arguments.seconds),
        ("round-robin", both, arguments.seconds / 2),
        ("fair-share", alone, arguments.seconds / 3),
    )
    for policy, models, seconds in cases:
        record = scratch / f"{policy}-{len(models)}.jsonl"
        hosted = [
            HostedModel(
                engine,
                make_batching_policy("slack", engine.name, model.qos, engine.limits),
                ModelMeter(time.monotonic()),
                qos=model.qos,
            )
            for engine, model in zip(engines, spec.models, strict=True)
        ]
        steps, answered, wall_s = run(
            hosted, models, work=work, policy=policy, device=device, record=record, for_s=seconds
        )
        if models == alone:
            used = 100 * steps.seconds() / wall_s
            yield bound("LLM idle: the encoder's part of the time (%)", used, at_least=97)
            continue
        if policy == "fair-share":
            yield from _shares(steps, wall_s)
        else:
            yield fact("- round-robin: LLM's part of device time (%)", 100 * steps.part(CRITICAL))
        for model, count in answered.items():
            yield fact(f"- {policy}: {model}: requests answered per second", count / seconds)
    for engine in engines:
        engine.close()


def _shares(steps: Steps, wall_s: float) -> Iterator[Row]:
    part = 100 * steps.part(CRITICAL)
    yield bound("both busy: LLM's part of device time (%)", part, at_least=100 * RESERVED)
    worst = 100 * steps.worst_window(CRITICAL, window_s=1.0)
    yield bound("both busy: its part of the worst second (%)", worst, at_least=88)
    yield fact("- longest step of the LLM (ms)", 1000 * steps.longest_s(without=OTHER))
    yield fact("- longest step of the encoder (ms)", 1000 * steps.longest_s(without=CRITICAL))
    yield fact("- time between steps (%)", 100 * (1 - steps.seconds() / wall_s))


def run(
    hosted: list[HostedModel],
    models: tuple[str, ...],
    *,
    work: Work,
    policy: str,
    device: str,
    record: Path,
    for_s: float,
) -> tuple[Steps, dict[str, int], float]:
    """Keep `models` busy; return the steps without the first ones, the answers and the seconds."""
    commands: Inbox = SimpleQueue()
    clients = Clients(work, commands)
    clients.begin(models)
    sensor = DeviceSampler(make_sensor(device), interval_s=0.5)
    sensor.start()
    loop = StepLoop(
        hosted,
        make_step_policy(policy, {m.name: m.qos for m in hosted}, max_step_s=_MAX_STEP_S),
        sensor=sensor,
        commands=commands,
        send=clients.take,
        snapshot_interval_s=0.5,
        record=StepRecord(record),
    )
    margin_s = for_s / 10  # graphs are captured and policies learn what steps cost
    started_s = time.monotonic()

    def stop() -> None:
        clients.is_over = True
        commands.put(Stop())

    timer = threading.Timer(for_s, stop)
    timer.start()
    try:
        loop.run()
    finally:
        timer.cancel()
        sensor.stop()
    steps = read_steps(record).between(started_s + margin_s, started_s + for_s)
    return steps, clients.num_answered, for_s - margin_s


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
