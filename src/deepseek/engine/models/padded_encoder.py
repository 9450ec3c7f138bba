"""Encoders in transformers' model code, with our linear layers: sequences padded to the longest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.linear import LinearFactory, make_linear
from deepseek.engine.models.encoder_heads import SentenceHead, has_classifier
from deepseek.engine.models.tensor_source import open_source
from deepseek.weights.model_directory import ModelDirectory
from deepseek.weights.store.reader import DEFAULT_READING, Reading

MAX_BATCH = 64
"""Sequences that run together at most."""


class PaddedEncoder:
    """See `deepseek.engine.models.encoder.Encoder`. A sequence costs as much as the longest."""

    def __init__(
        self,
        directory: ModelDirectory,
        *,
        dtype: torch.dtype,
        device: str,
        linear_factory: LinearFactory = make_linear,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        """Load the directory; raises `CorruptWeights` or `UnsupportedModel`."""
        self._device = device
        self._model = _load_model(directory, dtype, reading).to(device).eval()
        _replace_linears(self._model, linear_factory)
        config = self._model.config
        self.vocab_size: int = config.vocab_size
        self.num_types: int = max(1, getattr(config, "type_vocab_size", 0))
        self._head: SentenceHead | None = None
        if has_classifier(directory):
            self.width: int = config.num_labels
        else:
            hidden = config.hidden_size
            self._head = SentenceHead(directory.sentence, hidden=hidden, device=device)
            self.width = self._head.width

    def choose(self, lengths: Sequence[int], *, max_tokens: int) -> list[int]:
        """Take the oldest and those nearest to it in length, padding counted as tokens."""
        nearest = sorted(range(len(lengths)), key=lambda i: abs(lengths[i] - lengths[0]))
        chosen: list[int] = []
        longest = 0
        for index in nearest:
            longest = max(longest, lengths[index])
            full = len(chosen) == MAX_BATCH or longest * (len(chosen) + 1) > max_tokens
            if chosen and full:
                break
            chosen.append(index)
        return sorted(chosen)

    @torch.inference_mode()
    def encode(
        self, sequences: Sequence[list[int]], *, type_ids: Sequence[list[int] | None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Run all sequences in one forward pass."""
        lengths = [len(sequence) for sequence in sequences]
        inputs = {"input_ids": self._padded(sequences)}
        mask = None
        if min(lengths) != max(lengths):
            mask = inputs["attention_mask"] = self._padded([[1] * n for n in lengths])
        if type_ids is not None and self.num_types > 1:
            types = [row or [0] * length for row, length in zip(type_ids, lengths, strict=True)]
            inputs["token_type_ids"] = self._padded(types)
        output = self._model(**inputs)
        if self._head is None:
            return np.asarray(output.logits.float().cpu().numpy())
        pooled = _pool(output.last_hidden_state.float(), mask, self._head.pooling)
        return np.asarray(self._head.forward(pooled).cpu().numpy())

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        return torch.from_numpy(table).to(self._device)


def _load_model(directory: ModelDirectory, dtype: torch.dtype, reading: Reading) -> Any:
    disable_progress_bar()  # the log is read by people and machines
    cls: Any = AutoModelForSequenceClassification if has_classifier(directory) else AutoModel
    try:
        options = {"dtype": dtype, "output_loading_info": True}
        if directory.manifest is not None:
            model, report = _load_chunks(cls, directory, reading, **options)
        else:
            model, report = _load_files(cls, directory, **options)
    except SafetensorError as error:
        raise CorruptWeights(f"{directory.path}: damaged weights ({error})") from error
    except (ValueError, RuntimeError) as error:
        raise UnsupportedModel(f"{directory.path}: cannot be loaded: {error}") from error
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing:
        raise CorruptWeights(f"{directory.path}: tensors are missing: {', '.join(missing[:5])}")
    return model


def _load_files(cls: Any, directory: ModelDirectory, **options: Any) -> Any:
    return cls.from_pretrained(
        directory.path, local_files_only=True, use_safetensors=True, **options
    )


def _load_chunks(cls: Any, directory: ModelDirectory, reading: Reading, **options: Any) -> Any:
    source = open_source(directory.path, reading)
    config = AutoConfig.from_pretrained(directory.path, local_files_only=True)
    with torch.device("meta"):  # only to learn its class, which alone takes tensors without files
        model_class = type(cls.from_config(config))
    tensors = {name: source.tensor(name) for name in source.order}
    return model_class.from_pretrained(None, config=config, state_dict=tensors, **options)


def _replace_linears(module: torch.nn.Module, linear_factory: LinearFactory) -> None:
    """Replace every `torch.nn.Linear` below `module`, in place."""
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            bias: Any = child.bias
            linear = linear_factory(child.weight.data, None if bias is None else bias.data)
            setattr(module, name, linear)
        else:
            _replace_linears(child, linear_factory)


def _pool(hidden: torch.Tensor, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """Reduce (sequences, tokens, width) to (sequences, width)."""
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden.amax(dim=1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "mean":
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return hidden.masked_fill(weights == 0, float("-inf")).amax(dim=1)
