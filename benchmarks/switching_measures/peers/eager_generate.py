"""Answers the chats on standard input in one batch; prints how long the second time took."""

import argparse
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Read a JSON list of prompts and print the duration as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    chats = [[{"role": "user", "content": text}] for text in json.load(sys.stdin)]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    _generate(model, inputs, num_tokens=8)
    started_s = time.perf_counter()
    output = _generate(model, inputs, num_tokens=arguments.tokens)
    duration_s = time.perf_counter() - started_s
    if output.shape[1] - inputs["input_ids"].shape[1] != arguments.tokens:
        raise SystemExit("an answer has another length")
    print(json.dumps({"duration_s": duration_s}))


@torch.inference_mode()
def _generate(model, inputs, *, num_tokens: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return model.generate(
        **inputs,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )


if __name__ == "__main__":
    main()
