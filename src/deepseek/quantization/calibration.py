"""The texts that a quantization is searched and judged on, in two parts that share no text.

The search part tells which layers are sensitive; the held-out part decides whether the accuracy
asked for is met, so that the search cannot fit what it is judged by.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from deepseek.core.errors import InvalidQuantization

Data = Sequence[str] | Sequence[tuple[str, int]] | Path | str | None
"""Texts, texts with their labels, a file of either, or None for the built-in sample."""

SEARCH_SHARE = 0.4
MAX_TOKENS = 256
"""Longer texts are cut; longer runs of text are taken apart."""
MAX_ROWS = 1024
"""Most texts of a part that are used; sensitivity settles long before."""
MAX_JUDGED_TOKENS = 2048
"""Most tokens that a language model is judged on: its scores are kept, a vocabulary for each."""
MAX_CALIBRATION_TOKENS = 65_536
"""Most tokens that INT4 algorithms learn from, of which only sums are kept."""
BATCH_ROWS = 8
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What the caller gave: texts without repetition, and labels where all have one."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None
    source: str
    """Words for the report: where the texts came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part, as batches that a model takes."""

    batches: tuple[dict[str, torch.Tensor], ...]
    labels: torch.Tensor | None
    """(rows), where the caller gave labels."""
    num_texts: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """The two parts, and words about them."""

    search: Part
    held_out: Part
    calibration: Part
    """The search part's texts once more, as many of them as INT4 algorithms can use."""
    source: str


def read_texts(data: Data) -> Texts:
    """Return the caller's texts; raises `InvalidQuantization` where they cannot be used."""
    if data is None:
        sample = files("deepseek.quantization").joinpath("sample.txt").read_text("utf-8")
        return _texts(sample.splitlines(), source="the built-in sample")
    if isinstance(data, str | Path):
        path = Path(data)
        return _texts(_read_file(path), source=path.name)
    return _texts(list(data), source="texts given by the caller")


def prepare(texts: Texts, model: PreTrainedModel, tokenizer: Any) -> CalibrationData:
    """Tokenise the texts as the model's task needs them, and take them apart, always alike.

    Raises `InvalidQuantization` where texts or labels do not fit the model.
    """
    if model.config.is_encoder_decoder:
        raise InvalidQuantization(
            f"{type(model).__name__} has an encoder and a decoder, for which there is no measure "
            "of accuracy; language models, classifiers and encoders can be quantized",
            param="model",
        )
    is_generative = model.can_generate()
    if texts.labels is not None:
        _require_labels_fit(texts.labels, model)
    limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    max_tokens = min(MAX_TOKENS, *(limit for limit in limits if limit))
    order = list(range(len(texts.texts)))
    random.Random(_SEED).shuffle(order)  # noqa: S311 - a repeatable order, not a secret
    num_search = max(1, math.floor(SEARCH_SHARE * len(order)))
    searched, judged = order[:num_search], order[num_search:]
    if not is_generative:
        search = _rows(texts, searched, tokenizer=tokenizer, max_tokens=max_tokens)
        held_out = _rows(texts, judged, tokenizer=tokenizer, max_tokens=max_tokens)
        return CalibrationData(
            search=search, held_out=held_out, calibration=search, source=texts.source
        )

    def cut(indices: Sequence[int], limit: int) -> Part:
        return _running_text(
            texts, indices, tokenizer=tokenizer, max_tokens=max_tokens, limit=limit
        )

    return CalibrationData(
        search=cut(searched, MAX_JUDGED_TOKENS),
        held_out=cut(judged, MAX_JUDGED_TOKENS),
        calibration=cut(searched, MAX_CALIBRATION_TOKENS),
        source=texts.source,
    )


def _require_labels_fit(labels: Sequence[int], model: PreTrainedModel) -> None:
    num_labels = model.config.num_labels
    if model.can_generate() or not type(model).__name__.endswith("ForSequenceClassification"):
        raise InvalidQuantization(
            f"data: labels are for sequence classifiers, not for a {type(model).__name__}; give "
            "texts alone",
            param="data",
        )
    if not all(0 <= label < num_labels for label in labels):
        raise InvalidQuantization(
            f"data: labels must lie from 0 to {num_labels - 1}, the classes of this model; found "
            f"{min(labels)} to {max(labels)}",
            param="data",
        )


def _texts(items: Sequence[Any], *, source: str) -> Texts:
    pairs = [item if isinstance(item, tuple | list) else (item, None) for item in items]
    for number, pair in enumerate(pairs):
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise InvalidQuantization(
                f"data: item {number} is neither a text nor a pair of text and label", param="data"
            )
    unique = {text.strip(): label for text, label in pairs if text.strip()}
    if len(unique) < 2:
        raise InvalidQuantization(
            f"data: {source} holds {len(unique) or 'no'} text{'' if len(unique) == 1 else 's'}; "
            "give at least two different ones, one to search with and one to judge by",
            param="data",
        )
    labels = list(unique.values())
    num_labelled = sum(label is not None for label in labels)
    if num_labelled not in (0, len(labels)):
        raise InvalidQuantization(
            f"data: {num_labelled} of {len(labels)} texts have a label; label all or none",
            param="data",
        )
    return Texts(
        texts=tuple(unique),
        labels=tuple(map(int, labels)) if num_labelled else None,
        source=source,
    )


def _read_file(path: Path) -> list[Any]:
    """Return the lines of a text file, or `text` and `label` of a file of JSON lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidQuantization(
            f"data: {path} cannot be read as UTF-8 text ({error}); give a file of one text a "
            "line, or of JSON lines with `text` and, if known, `label`",
            param="data",
        ) from error
    if path.suffix != ".jsonl":
        return list(lines)
    return [
        _json_item(line, f"{path.name}:{number}") for number, line in enumerate(lines, 1) if line
    ]


def _json_item(line: str, place: str) -> tuple[str, int | None]:
    try:
        item = json.loads(line)
        return item["text"], item.get("label")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidQuantization(
            f"data: {place} is not a JSON object with `text`", param="data"
        ) from error


def _running_text(
    texts: Texts, indices: Sequence[int], *, tokenizer: Any, max_tokens: int, limit: int
) -> Part:
    """Join the texts and cut them into sequences of one length: no padding, long contexts."""
    joined = "\n\n".join(texts.texts[index] for index in indices)
    ids = tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"][:limit]
    length = min(max_tokens, len(ids)) or 1
    rows = torch.tensor(ids[: len(ids) // length * length]).long().reshape(-1, length)
    return Part(
        batches=tuple({"input_ids": batch} for batch in rows.split(BATCH_ROWS)) if ids else (),
        labels=None,
        num_texts=len(indices),
        num_tokens=rows.numel(),
    )


def _rows(texts: Texts, indices: Sequence[int], *, tokenizer: Any, max_tokens: int) -> Part:
    """Return each text as a row, padded to the longest of its batch; like lengths together."""
    if tokenizer.pad_token is None:
        raise InvalidQuantization(
            "tokenizer: it has no padding token, which batches of texts need; set "
            "`tokenizer.pad_token`",
            param="tokenizer",
        )
    indices = sorted(indices[:MAX_ROWS], key=lambda index: len(texts.texts[index]))
    batches = []
    for start in range(0, len(indices), BATCH_ROWS):
        chosen = [texts.texts[index] for index in indices[start : start + BATCH_ROWS]]
        encoded = tokenizer(
            chosen, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        batches.append(dict(encoded))
    labels = texts.labels
    return Part(
        batches=tuple(batches),
        labels=None if labels is None else torch.tensor([labels[index] for index in indices]),
        num_texts=len(indices),
        num_tokens=sum(int(batch["attention_mask"].sum()) for batch in batches),
    )
