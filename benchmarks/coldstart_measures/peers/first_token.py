"""A process that loads a language model with transformers, again and again, when it is told to.

    python first_token.py MODEL_DIRECTORY DTYPE

The answer to each line of standard input is a JSON line: `seconds` from the call of
`from_pretrained` to the first token of an answer, and the `token`, drawn greedily. Imports and the
tokenizer are not counted: ours has them behind it too.
"""

import gc
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error


def main() -> None:
    """Answer each line."""
    path, dtype = sys.argv[1:]
    disable_progress_bar()
    set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        started_s = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), local_files_only=True
        ).eval()
        with torch.inference_mode():
            logits = model(input_ids=prompt, use_cache=True, logits_to_keep=1).logits
            token = int(logits[0, -1].argmax())
        seconds = time.perf_counter() - started_s
        del model, logits
        gc.collect()
        print(json.dumps({"seconds": seconds, "token": token}), flush=True)


if __name__ == "__main__":
    main()
