"""The sentences that are embedded: real text of mixed lengths."""

import random
from itertools import cycle, islice

from frame import SHARED_DATA
from serving_measures.platform import MeasurementFailed

_FILE = SHARED_DATA / "sst2" / "sst_dev.tsv"
_MIN_WORDS = 2
_MAX_WORDS = 185
"""With the special tokens 4 to about 250 tokens: the model reads 256."""


def mixed_sentences(count: int) -> list[str]:
    """Return film reviews cut and joined to lengths spread evenly over the orders of magnitude."""
    if not _FILE.exists():
        raise MeasurementFailed(f"{_FILE} is not there: the sentences of GLUE's SST-2")
    lines = _FILE.read_text(encoding="utf-8").splitlines()[1:]
    words = cycle(word for line in lines for word in line.partition("\t")[0].split())
    lengths = random.Random("sentences")  # noqa: S311 - the same ones in every run
    return [
        " ".join(islice(words, round(_MIN_WORDS * (_MAX_WORDS / _MIN_WORDS) ** lengths.random())))
        for _ in range(count)
    ]
