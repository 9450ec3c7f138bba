"""Deployments of embedders and classifiers."""

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest, WrongTask
from deepseek.core.requests import EncodeRequest, Task
from deepseek.serving.base import EncodedRows
from deepseek.serving.deployments import Deployment
from deepseek.serving.replica import Replica
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import ModelDirectory


class EncoderDeployment(Deployment):
    """A served encoder; implements `deepseek.serving.base.EncodeDeployment`."""

    def __init__(
        self, name: str, settings: ModelSettings, directory: ModelDirectory, replica: Replica
    ) -> None:
        super().__init__(name, settings, directory, replica)
        self.task = directory.task if settings.task == "auto" else Task(settings.task)
        self.labels: Sequence[str] = directory.labels if self.task is Task.CLASSIFY else ()
        self.multi_label = directory.multi_label

    async def encode(
        self, inputs: Sequence[str | list[int]], *, truncate: bool = False
    ) -> EncodedRows:
        """Return embeddings or logits, one row per input."""
        self._check()
        sequences = self._sequences(inputs)
        return await self._run(self._fit(sequences, truncate=truncate))

    async def score(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> EncodedRows:
        """Return each document's relevance to the query, (documents, 1)."""
        self._check()
        if self.task is Task.EMBED:
            encoded = await self.encode([query, *documents], truncate=truncate)
            vectors = encoded.rows / np.linalg.norm(encoded.rows, axis=1, keepdims=True)
            return EncodedRows(
                rows=(vectors[1:] @ vectors[0])[:, None], num_tokens=encoded.num_tokens
            )
        if len(self.labels) != 1:
            raise WrongTask(
                f"model {self.name!r} classifies into {len(self.labels)} labels; reranking needs "
                "an embedder or a cross-encoder with one",
                param="model",
            )
        sequences, types = self.codec.encode_pairs(query, documents)
        sequences = self._fit(sequences, truncate=truncate)
        types = [row[: len(ids)] for row, ids in zip(types, sequences, strict=True)]
        encoded = await self._run(sequences, types)
        return EncodedRows(rows=_sigmoid(encoded.rows), num_tokens=encoded.num_tokens)

    async def _run(
        self, sequences: list[list[int]], types: list[list[int]] | None = None
    ) -> EncodedRows:
        request = EncodeRequest(
            id=self._replica.next_id(),
            model=self.name,
            sequences=sequences,
            token_type_ids=types,
            task=self.task,
        )
        with self._admitted(1):
            try:
                async with asyncio.timeout(self.settings.request_timeout_s):
                    encoded = await self._replica.encode(request)
            except TimeoutError:
                raise self._timed_out() from None
        rows = np.frombuffer(encoded.data, dtype=np.float32)
        return EncodedRows(
            rows=rows.reshape(encoded.num_rows, encoded.width),
            num_tokens=sum(map(len, sequences)),
        )

    def _sequences(self, inputs: Sequence[str | list[int]]) -> list[list[int]]:
        """Tokenise texts in one batch; inputs that are ids already pass through."""
        texts = [item for item in inputs if isinstance(item, str)]
        encoded = iter(self.codec.encode_batch(texts))
        return [next(encoded) if isinstance(item, str) else item for item in inputs]

    def _fit(self, sequences: list[list[int]], *, truncate: bool) -> list[list[int]]:
        """Cut or refuse what is too long; a cut keeps the closing special token."""
        limit = self.max_model_len
        fitted: list[list[int]] = []
        for index, sequence in enumerate(sequences):
            if not sequence:
                raise InvalidRequest(f"input {index} has no tokens", param=f"input[{index}]")
            if len(sequence) > limit and not truncate:
                raise ContextLengthExceeded(
                    f"input {index} has {len(sequence)} tokens; model {self.name!r} takes {limit}: "
                    "shorten it or set truncate",
                    param=f"input[{index}]",
                )
            too_long = len(sequence) > limit
            fitted.append([*sequence[: limit - 1], sequence[-1]] if too_long else sequence)
        return fitted


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float32)
