"""Runs in the peer's environment: onnxruntime on a list of texts.

    python embed_onnxruntime.py --graph FILE.onnx --tokenizer tokenizer.json --threads N
        --batch 32 --rounds 3 --vectors OUT.npy

Texts come as a JSON list on standard input. Prints one line of JSON: the seconds of each round,
from text to vectors: tokens, batches of similar lengths, mean over tokens, division by the norm.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Embedder:
    """One session and what surrounds it."""

    def __init__(self, graph: str, tokenizer: str, *, threads: int, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._batch = batch

    def encode(self, texts: list[str]) -> Any:
        """Return one unit vector a text, in their order."""
        sequences = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        parts = [
            self._run([sequences[index] for index in order[start : start + self._batch]])
            for start in range(0, len(order), self._batch)
        ]
        sorted_vectors = np.concatenate(parts)
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        return vectors

    def _run(self, sequences: list[list[int]]) -> Any:
        longest = max(map(len, sequences))
        input_ids = np.zeros((len(sequences), longest), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(sequences):
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        (hidden,) = self._session.run(["last_hidden_state"], feed)
        weights = attention_mask.astype(np.float32)[:, None, :]
        means = (weights @ hidden)[:, 0] / weights.sum(axis=2)
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def main() -> None:
    """Load, warm up, measure, save the vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--vectors", required=True)
    arguments = parser.parse_args()
    embedder = Embedder(
        arguments.graph, arguments.tokenizer, threads=arguments.threads, batch=arguments.batch
    )
    texts = json.load(sys.stdin)
    embedder.encode(texts[: 2 * arguments.batch])
    seconds = []
    for _ in range(arguments.rounds):
        start_s = time.perf_counter()
        vectors = embedder.encode(texts)
        seconds.append(time.perf_counter() - start_s)
    np.save(arguments.vectors, vectors)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
