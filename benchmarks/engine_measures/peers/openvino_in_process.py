"""Runs in the peer's environment: a closed loop over OpenVINO GenAI without any server.

    python openvino_in_process.py --model FILE.gguf --threads N --concurrency C --tokens T

Prompts come as a JSON list on standard input. Prints one line of JSON: the seconds, and the length
of each answer. Only token ids are read: no text is made of them.
"""

import argparse
import itertools
import json
import sys
import time
from typing import Any

from openvino_genai import ContinuousBatchingPipeline
from openvino_server import greedy, make_pipeline, prompt_ids

WARM_UP_TOKENS = 16


def closed_loop(
    pipeline: ContinuousBatchingPipeline, prompts: list[Any], *, concurrency: int, num_tokens: int
) -> list[int]:
    """Keep so many requests under way until all are answered; return the answers' lengths."""
    lengths = [0] * len(prompts)
    numbered = enumerate(prompts)
    running: dict[int, Any] = {}
    while True:
        for number, tokens in itertools.islice(numbered, concurrency - len(running)):
            running[number] = pipeline.add_request(number, tokens, greedy(num_tokens))
        if not running:
            return lengths
        pipeline.step()
        for number, handle in list(running.items()):
            if handle.can_read():
                (output,) = handle.read().values()
                lengths[number] += len(output.generated_ids)
                if output.finish_reason.name != "NONE":
                    del running[number]


def main() -> None:
    """Parse the arguments, warm up, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    arguments = parser.parse_args()
    pipeline = make_pipeline(arguments.model, threads=arguments.threads)
    tokenizer = pipeline.get_tokenizer()
    texts = json.load(sys.stdin)
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    warm_up = [prompt_ids(tokenizer, [{"role": "user", "content": "Hello there."}])]
    closed_loop(
        pipeline, warm_up * arguments.concurrency,
        concurrency=arguments.concurrency, num_tokens=WARM_UP_TOKENS,
    )  # fmt: skip
    start_s = time.perf_counter()
    lengths = closed_loop(
        pipeline, prompts, concurrency=arguments.concurrency, num_tokens=arguments.tokens
    )
    print(json.dumps({"duration_s": time.perf_counter() - start_s, "lengths": lengths}))


if __name__ == "__main__":
    main()
