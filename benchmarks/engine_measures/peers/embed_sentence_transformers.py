"""Runs in the peer's environment: sentence-transformers on a list of texts.

    python embed_sentence_transformers.py --model DIRECTORY --dtype float32 --threads N
        --batch 32 --rounds 3 --vectors OUT.npy

Texts come as a JSON list on standard input. Prints one line of JSON: the seconds of each round,
from text to vectors. It sorts by length itself.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Load, warm up, measure, save the vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--vectors", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = SentenceTransformer(
        arguments.model, device="cpu", model_kwargs={"dtype": getattr(torch, arguments.dtype)}
    )
    texts = json.load(sys.stdin)
    model.encode(texts[: 2 * arguments.batch], batch_size=arguments.batch)
    seconds = []
    for _ in range(arguments.rounds):
        start_s = time.perf_counter()
        vectors = model.encode(texts, batch_size=arguments.batch, show_progress_bar=False)
        seconds.append(time.perf_counter() - start_s)
    np.save(arguments.vectors, np.asarray(vectors, dtype=np.float32))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
