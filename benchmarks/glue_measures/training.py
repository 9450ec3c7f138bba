"""Fine-tunes MiniLM on SST-2, one model a seed, kept between runs.

    python benchmarks/glue_measures/training.py SEED [--seconds S]

One pass over 20,000 rows drawn by the seed: some minutes on two cores, in pieces where they are
wanted for something else. The classifier of the catalogue trains a head alone
(`deepseek.weights.train_sentiment`); here the encoder is trained too, as GLUE's figures are made.
"""

import argparse
import csv
import math
import random
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script as well

from frame import ENVIRONMENTS, SHARED_DATA
from serving_measures.platform import EMBED_MODEL, MeasurementFailed

from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress

LABELS = ("negative", "positive")
NUM_ROWS = 20_000
BATCH_ROWS = 32
LEARNING_RATE = 1e-4
MAX_TOKENS = 64
_WARM_UP = 0.06


def read_rows(split: str) -> list[tuple[str, int]]:
    """Return the texts and labels of `train`, `dev` or `test` (GLUE's dev set of 872 rows)."""
    path = SHARED_DATA / "sst2" / f"sst_{split}.tsv"
    if not path.exists():
        raise MeasurementFailed(f"{path} is absent: SST-2 is needed to measure what it costs")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"].strip(), int(row["label"])) for row in rows]


def trained_model(seed: int) -> Path:
    """Return the directory of the model of a seed, trained on the first call."""
    while not (done := train(seed, seconds=math.inf)):
        continue
    return done


def train(seed: int, *, seconds: float) -> Path | None:
    """Train for about so long, from where the last call ended; return the finished model, if it is.

    The same seed gives the same rows in the same order, however often it was broken off.
    """
    directory = ENVIRONMENTS / "models" / f"minilm-sst2-{seed}"
    if directory.exists():
        return directory
    work = directory.with_name(f".{directory.name}")
    work.mkdir(parents=True, exist_ok=True)
    run = _Training(seed)
    run.resume(work / "state.pt")
    deadline = time.monotonic() + seconds
    while run.step < len(run.batches) and time.monotonic() < deadline:
        run.take_step()
    if run.step < len(run.batches):
        run.suspend(work / "state.pt")
        return None
    run.save(work)
    (work / "state.pt").unlink(missing_ok=True)
    work.rename(directory)
    return directory


class _Training:
    def __init__(self, seed: int) -> None:
        source = acquire(
            CATALOGUE[EMBED_MODEL], cache=ModelCache.default(), progress=SilentProgress()
        )
        self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        torch.manual_seed(seed)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            source,
            local_files_only=True,
            dtype=torch.float32,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
        )
        # Half of all weights, of which a batch uses a few rows: as many seconds for no accuracy.
        self._model.base_model.embeddings.requires_grad_(False)
        self._model.train()
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
        self.batches = _batches(seed)
        self.step = 0

    def take_step(self) -> None:
        texts, labels = zip(*self.batches[self.step], strict=True)
        encoded = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._model(**encoded).logits
        functional.cross_entropy(logits.float(), torch.tensor(labels)).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _rate(self.step, len(self.batches))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1

    def suspend(self, file: Path) -> None:
        state = {
            "step": self.step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),  # of dropout
        }
        torch.save(state, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    def resume(self, file: Path) -> None:
        if not file.exists():
            return
        state = torch.load(file)
        self.step = state["step"]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])

    def save(self, directory: Path) -> None:
        self._model.eval().save_pretrained(directory)
        self._tokenizer.save_pretrained(directory)


def _rate(step: int, num_steps: int) -> float:
    return min((step + 1) / (_WARM_UP * num_steps), (num_steps - step) / num_steps)


def _batches(seed: int) -> list[list[tuple[str, int]]]:
    """Return the batches of a seed: rows of like length together, in a random order."""
    rows = read_rows("train")
    draw = random.Random(seed)  # noqa: S311 - a repeatable order, not a secret
    chosen = draw.sample(rows, NUM_ROWS)
    chosen.sort(key=lambda row: len(row[0]))
    batches = [chosen[start : start + BATCH_ROWS] for start in range(0, NUM_ROWS, BATCH_ROWS)]
    draw.shuffle(batches)
    return batches


def main() -> int:
    """Train the model of a seed for a while; 0 when it is done, 3 where there is more to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    arguments = parser.parse_args()
    return 0 if train(arguments.seed, seconds=arguments.seconds) else 3


if __name__ == "__main__":
    sys.exit(main())
