"""Runs in the peer's environment: writes an encoder as an ONNX graph with fused operators.

    python export_onnx.py --model DIRECTORY --output FILE.onnx

Attention is exported in its plain form, for only that form is found by onnxruntime's fusion; a
graph in which it was not fused is refused, since the peer would not be at its best.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from transformers import AutoModel


class LastHiddenState(torch.nn.Module):
    """An encoder of single sentences: no segment ids."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self._encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state


def main() -> None:
    """Export, fuse, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    encoder = AutoModel.from_pretrained(
        arguments.model, attn_implementation="eager", dtype=torch.float32
    )
    tokens = torch.ones((2, 16), dtype=torch.long)
    axes = {0: "batch", 1: "length"}
    names = ("input_ids", "attention_mask", "last_hidden_state")
    with tempfile.TemporaryDirectory() as directory:
        plain = str(Path(directory) / "plain.onnx")
        torch.onnx.export(
            LastHiddenState(encoder.eval()),
            (tokens, tokens),
            plain,
            input_names=names[:2],
            output_names=names[2:],
            dynamic_axes=dict.fromkeys(names, axes),
            opset_version=17,
            dynamo=False,  # its graphs are not fused
        )
        fused = optimize_model(
            plain,
            model_type="bert",
            num_heads=encoder.config.num_attention_heads,
            hidden_size=encoder.config.hidden_size,
            optimization_options=FusionOptions("bert"),
        )
    counts = fused.get_fused_operator_statistics()
    if counts["Attention"] != encoder.config.num_hidden_layers:
        sys.exit(f"attention was not fused: {json.dumps(counts)}")
    fused.save_model_to_file(arguments.output)


if __name__ == "__main__":
    main()
