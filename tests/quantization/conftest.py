"""Texts and models for the tests of quantization."""

import random

import pytest
from transformers import logging

WORDS = [
    *("capital", "France", "Paris", "weather", "lovely", "film", "book", "once", "upon", "time"),
    *("small", "model", "answered", "question", "language", "English", "name", "age", "active"),
]


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def texts() -> list[str]:
    """Two hundred different lines; short, so that a tiny model reads them in a moment."""
    draw = random.Random(7)
    return [f"{number} " + " ".join(draw.choices(WORDS, k=6)) for number in range(200)]
