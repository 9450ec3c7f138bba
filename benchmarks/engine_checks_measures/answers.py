"""Are our greedy answers those of transformers, batched and alone, in float32?

An answer is transformers' own when each of its tokens is the most probable one by transformers'
logits after the tokens before it. One forward pass over prompt and answer shows that for every
place at once; by induction it is what a greedy `generate` would have said. Where an answer differs,
the distance between the two candidates tells an error from a tie that rounding has decided.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch
from frame import Row, bound, fact
from serving_measures.platform import Run
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from deepseek.core.requests import SamplingParams
from deepseek.engine.settings import PoolSettings
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import open_model_directory
from engine_checks_measures.families import (
    cached_real_models,
    questions,
    random_prompts,
    write_tiny_models,
)
from engine_checks_measures.worker import answers as answers_of
from engine_checks_measures.worker import running

_CONCURRENCY = 48
_TINY_TOKENS = (1, 2, 5, 17, 33, 60)
_REAL_TOKENS = 48
# Small steps and many sequences: prompts are cut into chunks and mixed with decoding ones.
_POOL = PoolSettings(device="cpu", max_step_tokens=128, max_running=32)

Work = list[tuple[list[int], SamplingParams]]


def answers(run: Run) -> list[Row]:
    """Compare every family; one row each."""
    disable_progress_bar()
    count = run.count(200, 6)
    paths = write_tiny_models(run.work / "tiny")
    rows = asyncio.run(_tiny_rows(paths, count))
    for name in [] if run.quick else cached_real_models():
        rows += asyncio.run(_real_rows(name, count))
    return rows


async def _tiny_rows(paths: dict[str, Path], count: int) -> list[Row]:
    """Answer with each family twice in one worker, each time with a KV cache of its own."""
    settings = ModelSettings(source=".", dtype="float32")
    models = {
        _name(family, way): settings.model_copy(update={"source": str(path)})
        for family, path in paths.items()
        for way in ("batched", "alone")
    }
    rows: list[Row] = []
    async with running(models, pool=_POOL) as (_, replica):
        for family, path in paths.items():
            work = _tiny_work(path, count)
            batched = await answers_of(
                replica, _name(family, "batched"), work, concurrency=_CONCURRENCY
            )
            alone = await answers_of(replica, _name(family, "alone"), work, concurrency=1)
            rows += _compare(f"tiny {family}", path, work, batched=batched, alone=alone)
    return rows


def _name(family: str, way: str) -> str:
    return f"{family}-{way}"


def _tiny_work(path: Path, count: int) -> Work:
    vocab_size = open_model_directory(path).config["vocab_size"]
    prompts = random_prompts(count, vocab_size=vocab_size)
    return [
        (
            prompt,
            SamplingParams(
                max_tokens=_TINY_TOKENS[number % len(_TINY_TOKENS)],
                temperature=0.0,
                ignore_eos=True,
            ),
        )
        for number, prompt in enumerate(prompts)
    ]


async def _real_rows(name: str, count: int) -> list[Row]:
    settings = ModelSettings(source=name, dtype="float32")
    models = {f"{name}-batched": settings, f"{name}-alone": settings}
    async with running(models, pool=_POOL) as (platform, replica):
        generator = platform.generator(f"{name}-alone")
        sampling = SamplingParams(max_tokens=_REAL_TOKENS, temperature=0.0)
        work = [
            (generator.render_chat([{"role": "user", "content": text}]), sampling)
            for text in questions(count)
        ]
        batched = await answers_of(replica, f"{name}-batched", work, concurrency=_CONCURRENCY)
        alone = await answers_of(replica, f"{name}-alone", work, concurrency=1)
        path = generator.directory.path
    return _compare(name, path, work, batched=batched, alone=alone)


def _compare(
    name: str, path: Path, work: Work, *, batched: list[list[int]], alone: list[list[int]]
) -> list[Row]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    gaps: list[float] = []
    for (prompt, _), *both in zip(work, batched, alone, strict=True):
        found = {tuple(tokens): _gap(model, prompt, tokens) for tokens in both}
        gaps += [gap for tokens in both if (gap := found[tuple(tokens)]) is not None]
    rows = [
        bound(
            f"{name}: of {2 * len(work)} answers, batched and alone, not transformers' greedy",
            len(gaps),
            at_most=0,
        )
    ]
    if gaps:
        rows.append(
            fact(f"- {name}: transformers' logit over ours where they part, at most", max(gaps))
        )
    return rows


@torch.inference_mode()
def _gap(model: torch.nn.Module, prompt: Sequence[int], tokens: Sequence[int]) -> float | None:
    """Return by how much transformers prefers another token at the first one that is not its own.

    None where there is no such token.
    """
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    wrong = torch.nonzero(logits.argmax(-1) != torch.tensor(tokens))
    if not len(wrong):
        return None
    place = int(wrong[0])
    return float(logits[place].max() - logits[place, tokens[place]])
