"""The models whose answers are compared: a tiny one of every decoder family, and real ones."""

import inspect
import random
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from frame import REPOSITORY

from deepseek.core.requests import Task
from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import open_model_directory

REAL_MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")

_TASKS = (
    "Explain in two sentences what {} is.",
    "Write a short story about {}.",
    "List three facts about {}.",
    "What would a child ask about {}?",
    "Describe {} to somebody who has never heard of it.",
    "Write a Python function whose name has to do with {}.",
    "Why do people care about {}?",
    "Write a headline about {}.",
    "Is {} important? Answer yes or no, and say why.",
    "Give an example of {} in daily life.",
)
_SUBJECTS = (
    "the moon", "a bicycle", "photosynthesis", "the number zero", "bread", "gravity", "a library",
    "rain", "the heart", "money", "a lighthouse", "music", "the internet", "winter", "a map",
    "sleep", "electricity", "a bridge", "tea", "the ocean",
)  # fmt: skip


def write_tiny_models(directory: Path) -> dict[str, Path]:
    """Write a model of random weights for each decoder that the tests have a writer for."""
    names = [name for name, _ in inspect.getmembers(_writers(), inspect.isfunction)]
    families = [name.removeprefix("write_") for name in names if name.startswith("write_")]
    paths = {family: write_tiny_model(family, directory / family) for family in families}
    return {
        family: path
        for family, path in paths.items()
        if open_model_directory(path).task is Task.GENERATE
    }


def write_tiny_model(family: str, directory: Path) -> Path:
    """Write one of them."""
    path: Path = getattr(_writers(), f"write_{family}")(directory)
    return path


def _writers() -> ModuleType:
    if str(REPOSITORY) not in sys.path:  # a benchmark's path begins beside it
        sys.path.append(str(REPOSITORY))
    return import_module("tests.tiny_models")


def cached_real_models() -> list[str]:
    """Return the real models to compare: the default one, and others that are in the cache."""
    cache = ModelCache.default()
    return [name for name in REAL_MODELS if name == REAL_MODELS[0] or name in cache]


def random_prompts(count: int, *, vocab_size: int) -> list[list[int]]:
    """Return prompts of 1 to 160 tokens, many with a common beginning."""
    rng = random.Random(5)  # noqa: S311 - no secret
    shared = [rng.randrange(vocab_size) for _ in range(100)]
    return [
        shared[: rng.choice((0, 0, 20, 70, 100))]
        + [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 60))]
        for _ in range(count)
    ]


def questions(count: int) -> list[str]:
    """Return questions to a real model; up to 200 of them are different."""
    every = [task.format(subject) for subject in _SUBJECTS for task in _TASKS]
    return [every[number % len(every)] for number in range(count)]
