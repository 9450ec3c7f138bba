"""What prompt lookup is worth where answers quote their prompt, and costs where they do not.

One worker holds the model twice, with and without speculation, and answers the same requests with
one after the other, in rounds that begin with each in turn: whatever else the machine does falls on
both. A round's prompts are new, so that no prefix cache helps.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice

from frame import Row, bound, comparison, fact
from serving_measures.platform import Run

from deepseek.core.requests import SamplingParams
from deepseek.engine.settings import PoolSettings
from deepseek.serving.deployments import Generator
from deepseek.serving.replica import Replica
from deepseek.serving.settings import ModelSettings
from engine_checks_measures.worker import answers, running

_SOURCE = "smollm2-135m"
_PLAIN, _SPECULATING = "plain", "speculating"
_CONCURRENCIES = (1, 4)
_SPEED_UP = 1.5
_LEAST_ON_HOSTILE = 0.98
_POOL = PoolSettings(device="cpu")
_FORMATS: dict[str, dict[str, str]] = {
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
_WORDS = (  # noqa: SIM905  a paragraph reads better than a list
    "harbour lantern copper meadow thirteen violin glacier pepper cabinet orbit sparrow marble "
    "ticket engine saddle almond window canvas tunnel barrel ribbon falcon pocket timber"
).split()

Work = list[tuple[list[int], SamplingParams]]
Workload = Callable[[Generator, int, str], Work]


def speculation(run: Run) -> list[Row]:
    """Compare answers in float32, then throughput in the formats that people serve."""
    rows = asyncio.run(_same_answers(run))
    for name, settings in _FORMATS.items():
        rows += asyncio.run(_speed(run, name, settings))
    return rows


async def _same_answers(run: Run) -> list[Row]:
    count = run.count(24, 2)
    differing = 0
    async with running(_models(dtype="float32"), pool=_POOL) as (platform, replica):
        for make in (copy_heavy, hostile):
            work = make(platform.generator(_PLAIN), count, "answers")
            plain = await answers(replica, _PLAIN, work, concurrency=4)
            guessed = await answers(replica, _SPECULATING, work, concurrency=4)
            differing += sum(a != b for a, b in zip(plain, guessed, strict=True))
    return [
        bound(f"float32: of {2 * count} answers changed by speculation", differing, at_most=0),
    ]


async def _speed(run: Run, name: str, settings: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    async with running(_models(**settings), pool=_POOL) as (platform, replica):
        generator = platform.generator(_PLAIN)
        await _round(replica, copy_heavy(generator, 2, "warm"), concurrency=2, first=_PLAIN)
        for concurrency in _CONCURRENCIES:
            for make, at_least in ((copy_heavy, _SPEED_UP), (hostile, _LEAST_ON_HOSTILE)):
                rounds = [
                    await _round(
                        replica,
                        make(generator, run.count(2, 1) * concurrency, f"{concurrency} {number}"),
                        concurrency=concurrency,
                        first=(_PLAIN, _SPECULATING)[number % 2],
                    )
                    for number in range(run.count(9, 1))
                ]
                about = f"{name}, {make.__name__.replace('_', '-')}, concurrency {concurrency}"
                rows += _rows(about, rounds, at_least=at_least)
    return rows


def _rows(about: str, rounds: list[dict[str, float]], *, at_least: float) -> list[Row]:
    """Judge by the median of the rounds' ratios: a round's two halves are neighbours in time."""
    rates = {key: statistics.median(r[key] for r in rounds) for key in (_PLAIN, _SPECULATING)}
    ratios = sorted(r[_SPECULATING] / r[_PLAIN] for r in rounds)
    ratio = statistics.median(ratios)
    return [
        comparison(
            f"{about}: with / without (tok/s)",
            ours=ratio * rates[_PLAIN],
            peer=rates[_PLAIN],
            at_least=at_least,
        ),
        fact(f"- ratios of {len(rounds)} rounds", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"),
    ]


async def _round(replica: Replica, work: Work, *, concurrency: int, first: str) -> dict[str, float]:
    """Return output tokens per second of both, measured one after the other."""
    rates: dict[str, float] = {}
    for model in sorted((_PLAIN, _SPECULATING), key=lambda model: model != first):
        started_s = time.perf_counter()
        found = await answers(replica, model, work, concurrency=concurrency)
        rates[model] = sum(map(len, found)) / (time.perf_counter() - started_s)
    return rates


def _models(**settings: str) -> dict[str, ModelSettings]:
    base = {"source": _SOURCE, **settings}
    return {
        _PLAIN: ModelSettings.model_validate(base),
        _SPECULATING: ModelSettings.model_validate({**base, "speculation": "prompt-lookup"}),
    }


def copy_heavy(generator: Generator, count: int, seed: str) -> Work:
    """Return requests whose answers quote the prompt: a text or code to be given back."""
    rng = random.Random(f"copy {seed}")  # noqa: S311 - no secret
    sampling = SamplingParams(max_tokens=128, temperature=0.0)
    return [
        (generator.render_chat([{"role": "user", "content": make(rng)}]), sampling)
        for make in islice(cycle((_text_to_repeat, _code_to_edit)), count)
    ]


def hostile(generator: Generator, count: int, seed: str) -> Work:
    """Return requests whose n-grams have all been seen and say nothing of what comes next.

    Prompt and answer are drawn evenly from six tokens: every n-gram recurs, and five of six guesses
    are wrong whatever was seen before.
    """
    rng = random.Random(f"hostile {seed}")  # noqa: S311 - no secret
    ids = [generator.tokenize(f" {word}")[0] for word in rng.sample(_WORDS, 6)]
    # At this temperature the model's own preferences vanish beside the bias: an even draw.
    bias = dict.fromkeys(ids, 100_000.0)
    return [
        (
            [rng.choice(ids) for _ in range(240)],
            SamplingParams(
                max_tokens=96,
                temperature=1_000.0,
                logit_bias=bias,
                ignore_eos=True,
                seed=rng.randrange(2**31),
            ),
        )
        for _ in range(count)
    ]


def _text_to_repeat(rng: random.Random) -> str:
    sentences = [
        f"The {rng.choice(_WORDS)} near the {rng.choice(_WORDS)} was sold for "
        f"{rng.randrange(20, 900)} coins to a {rng.choice(_WORDS)} maker."
        for _ in range(5)
    ]
    return f"Repeat the following text exactly, word for word:\n\n{' '.join(sentences)}"


def _code_to_edit(rng: random.Random) -> str:
    names = rng.sample(_WORDS, 4)
    lines = "\n".join(f"    {name} = read_{name}({rng.randrange(99)})" for name in names)
    total = " + ".join(names)
    code = f"def compute():\n{lines}\n    return {total}\n"
    return f"Rename the function to `total` and write out the whole code again:\n\n{code}"
