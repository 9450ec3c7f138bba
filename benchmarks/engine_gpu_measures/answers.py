"""Greedy answers of a small real model, batched, beside transformers' own."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.core.wire import TokenDelta
from engine_gpu_measures.session import open_session


class MeasurementFailed(Exception):
    """The engine did not do what was asked."""


_PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Write a haiku about the sea.",
    "def fibonacci(n):",
    "The three laws of thermodynamics are",
    "In 1969, the first man",
    "A recipe for bread: take",
    "Why is the sky blue?",
    "Translate to French: good morning",
    "The quick brown fox",
    "List the planets of the solar system:",
    "To be, or not to be,",
    "The derivative of x squared is",
    "My favourite animal is the elephant because",
    "Dear Sir or Madam,",
    "SELECT name FROM",
]
_NEW_TOKENS = 64


def compare_answers(directory: Path, *, dtype: str) -> tuple[int, int, str]:
    """Return how many answers are equal, of how many, and where the first differs."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    # Lengths from a few tokens to several blocks, and common prefixes among them.
    texts = [" ".join(_PROMPTS[: n % 7]) + " " + prompt for n, prompt in enumerate(_PROMPTS * 2)]
    prompts = [tokenizer.encode(text).ids for text in texts]
    ours = _ours(directory, prompts, dtype=dtype)
    expected = _transformers(directory, prompts, dtype=dtype)
    differing = [n for n in range(len(prompts)) if ours[n] != expected[n]]
    first = "none"
    if differing:
        pairs = zip(ours[differing[0]], expected[differing[0]], strict=True)
        place = next(n for n, (left, right) in enumerate(pairs) if left != right)
        first = f"{place} of answer {differing[0]}"
    return len(prompts) - len(differing), len(prompts), first


def _ours(directory: Path, prompts: list[list[int]], *, dtype: str) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {n: [] for n in range(len(prompts))}
    sampling = SamplingParams(max_tokens=_NEW_TOKENS, temperature=0.0, ignore_eos=True)
    with open_session(directory, dtype=dtype, max_running=24, max_len=2048) as session:
        for number, prompt in enumerate(prompts):
            session.engine.add(
                GenerateRequest(id=number, model="m", prompt_token_ids=prompt, sampling=sampling)
            )
        while session.engine.has_work:
            for output in session.engine.step():
                if not isinstance(output, TokenDelta):
                    raise MeasurementFailed(f"the engine answered {output}")
                answers[output.id].extend(output.token_ids)
    return answers


@torch.inference_mode()
def _transformers(directory: Path, prompts: list[list[int]], *, dtype: str) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).cuda()
    answers = []
    for prompt in prompts:
        inputs = torch.tensor([prompt], device="cuda")
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers
