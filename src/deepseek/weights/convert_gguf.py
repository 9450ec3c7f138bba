"""GGUF to a Hugging Face directory.

    python -m deepseek.weights.convert_gguf FILE DEST

Serving never parses GGUF. transformers' own GGUF reader does the work: it names tensors, undoes
llama.cpp's permutations and rebuilds tokenizer and chat template. Its loader for tensors is called
directly because `from_pretrained(gguf_file=...)` wants the accelerate package and keeps a
quantisation config that `save_pretrained` then refuses. Measured on 2 cores, SmolLM2-135M in Q4_1:
19 s, of which 12 s is reading the vocabulary three times and 2 s dequantising; loading through the
gguf package alone would save the vocabulary's 6 s and need a copy of those tensor mappings.
"""

import struct
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from deepseek.core.errors import CorruptWeights, ModelSourceError, UnsupportedModel
from deepseek.weights.conversion_child import run_child
from deepseek.weights.progress import Progress

_MAGIC = b"GGUF"
_NUM_STEPS = 4


def convert(file: Path, destination: Path, progress: Progress) -> None:
    """Write config, tokenizer and bfloat16 safetensors of `file` into `destination`."""
    _require_gguf(file)
    progress.stage(f"converting {file.name} to safetensors", total=_NUM_STEPS)
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        progress.advance()
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        progress.advance()
        model = _load_model(file, config)
        progress.advance()
    except NotImplementedError as error:
        raise UnsupportedModel(f"{file}: {error}") from error
    except (ValueError, IndexError, KeyError, struct.error) as error:
        if "not supported" in str(error):
            raise UnsupportedModel(f"{file}: {error}") from error
        raise CorruptWeights(
            f"{file}: damaged GGUF file ({type(error).__name__}: {error}); fetch it again"
        ) from error
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(destination)
    model.save_pretrained(destination)
    progress.advance()


def _require_gguf(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except OSError as error:
        raise ModelSourceError(f"{file} cannot be read ({error.strerror})") from error
    if magic != _MAGIC:
        raise CorruptWeights(f"{file} is not a GGUF file; give one, or fetch it again")


def _load_model(file: Path, config: Any) -> Any:
    vars(config).pop("_model_name_or_path", None)  # GGUF's `general.name`, which is no path
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    loaded = load_gguf_checkpoint(
        str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
    )
    report = model.load_state_dict(loaded["tensors"], strict=False, assign=True)
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    missing = sorted(set(report.missing_keys) - tied)
    if missing or report.unexpected_keys:
        names = ", ".join((missing + report.unexpected_keys)[:5])
        raise CorruptWeights(f"{file}: tensors are missing or unknown: {names}; fetch it again")
    model.tie_weights()
    return model


def main() -> int:
    """Run as a conversion subprocess."""
    file, destination = map(Path, sys.argv[1:3])
    return run_child(lambda progress: convert(file, destination, progress))


if __name__ == "__main__":
    sys.exit(main())
