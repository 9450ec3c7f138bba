"""MiniLM embeddings of sentences of mixed lengths, from text to vectors, without HTTP.

Ours, sentence-transformers and onnxruntime, each in a process of its own with as many threads as
cores, one after the other. Vectors are compared with sentence-transformers' in float32.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from frame import ENVIRONMENTS, Row, bound, comparison, fact, peer_environment
from serving_measures.platform import EMBED_MODEL, MeasurementFailed, Run, source_path

from deepseek.serving.text_codec import TextCodec
from deepseek.serving.worker_process import worker_environment
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress
from engine_measures.sentences import mixed_sentences

REQUIREMENTS = (
    "sentence-transformers==6.2.0",
    "onnxruntime==1.31.1",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
)
_NUM_SENTENCES = 1000
_ROUNDS = 3
_BATCH = 32
"""The default of sentence-transformers."""
_MIN_COSINE = {"float32": 0.99999, "bfloat16": 0.995}
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class _Result:
    sentences_per_s: float
    vectors: npt.NDArray[np.float32]


def embeddings(run: Run) -> list[Row]:
    """Measure all three in float32, and in bfloat16 those that can."""
    model = acquire(CATALOGUE[EMBED_MODEL], cache=ModelCache.default(), progress=SilentProgress())
    bench = _Bench(run, model)
    peers = {dtype: bench.sentence_transformers(dtype) for dtype in _MIN_COSINE}
    onnx = bench.onnxruntime()
    ours = {dtype: bench.ours(dtype) for dtype in _MIN_COSINE}
    reference = peers["float32"].vectors
    _require_same_model(onnx.vectors, reference)
    rows = [
        _row(f"{dtype} (sentence-transformers, {dtype})", ours[dtype], peers[dtype], at_least=1.5)
        for dtype in _MIN_COSINE
    ]
    rows.append(_row("float32 (onnxruntime, float32)", ours["float32"], onnx, at_least=1.0))
    rows.append(_row("bfloat16 (onnxruntime, float32)", ours["bfloat16"], onnx))
    rows += [
        bound(
            f"embeddings: lowest cosine of ours in {dtype} to sentence-transformers' in float32",
            _lowest_cosine(ours[dtype].vectors, reference),
            at_least=least,
        )
        for dtype, least in _MIN_COSINE.items()
    ]
    return [*rows, fact("embeddings: tokens of a sentence, mean", bench.mean_tokens)]


class _Bench:
    """Runs one process after the other over the same sentences."""

    def __init__(self, run: Run, model: Path) -> None:
        self._run = run
        self._model = model
        self._texts = mixed_sentences(run.count(_NUM_SENTENCES, 100))
        self._rounds = run.count(_ROUNDS, 1)
        self._python = peer_environment("encoders", REQUIREMENTS)
        lengths = [len(tokens) for tokens in TextCodec(model).encode_batch(self._texts)]
        self.mean_tokens = statistics.fmean(lengths)

    def ours(self, dtype: str) -> _Result:
        command = [sys.executable, "-m", "engine_measures.embed_ours"]
        path = os.pathsep.join([str(_HERE.parent), source_path()["PYTHONPATH"]])
        return self._measure(
            [*command, "--model", str(self._model), "--dtype", dtype],
            environment={**worker_environment(), "PYTHONPATH": path},  # as a worker runs
        )

    def sentence_transformers(self, dtype: str) -> _Result:
        command = self._peer("embed_sentence_transformers.py")
        return self._measure([*command, "--model", str(self._model), "--dtype", dtype])

    def onnxruntime(self) -> _Result:
        command = self._peer("embed_onnxruntime.py")
        tokenizer = str(self._model / "tokenizer.json")
        return self._measure([*command, "--graph", str(self._graph()), "--tokenizer", tokenizer])

    def _peer(self, script: str) -> list[str]:
        return [str(self._python), str(_HERE / "peers" / script), "--batch", str(_BATCH)]

    def _graph(self) -> Path:
        """Return the exported model, made on the first call."""
        graph = ENVIRONMENTS / "models" / f"{EMBED_MODEL}.onnx"
        if not graph.exists():
            graph.parent.mkdir(parents=True, exist_ok=True)
            script = str(_HERE / "peers" / "export_onnx.py")
            _output(
                [str(self._python), script, "--model", str(self._model), "--output", str(graph)]
            )
        return graph

    def _measure(
        self, command: Sequence[str], *, environment: dict[str, str] | None = None
    ) -> _Result:
        vectors = self._run.work / "vectors.npy"
        threads = len(os.sched_getaffinity(0))
        arguments = ["--threads", str(threads), "--rounds", str(self._rounds)]
        output = _output(
            [*command, *arguments, "--vectors", str(vectors)],
            text=json.dumps(self._texts),
            environment=environment,
        )
        seconds: list[float] = json.loads(output.splitlines()[-1])["seconds"]
        return _Result(len(self._texts) / statistics.median(seconds), np.load(vectors))


def _output(
    command: Sequence[str], *, text: str = "", environment: dict[str, str] | None = None
) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", **(environment or {})}
    result = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False,
        env={**os.environ, **offline},
    )  # fmt: skip
    if result.returncode != 0:
        raise MeasurementFailed(f"{Path(command[1]).name}: {result.stderr[-1000:]}")
    return result.stdout


def _row(name: str, ours: _Result, peer: _Result, *, at_least: float | None = None) -> Row:
    return comparison(
        f"embeddings: sentences/s, {name}",
        ours=ours.sentences_per_s,
        peer=peer.sentences_per_s,
        at_least=at_least,
    )


def _require_same_model(vectors: Any, reference: Any) -> None:
    lowest = _lowest_cosine(vectors, reference)
    if lowest < _MIN_COSINE["float32"]:
        raise MeasurementFailed(f"onnxruntime computes something else: cosine {lowest}")


def _lowest_cosine(vectors: Any, reference: Any) -> float:
    """Return the lowest cosine of a pair of rows."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((vectors * reference).sum(axis=1) / norms).min())
