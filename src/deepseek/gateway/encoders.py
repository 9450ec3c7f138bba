"""`POST /v1/embeddings`, `/v1/rerank` and `/v1/classify`."""

import base64
import time
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt

from deepseek.core.errors import InvalidRequest
from deepseek.gateway.body import BodyDecoder, read_json_body
from deepseek.gateway.exchange import Exchange, new_id
from deepseek.gateway.inputs import split_inputs
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_base import EncodingUsage
from deepseek.gateway.protocol_encoders import (
    RERANK_REFUSED,
    Classification,
    ClassificationList,
    ClassifyRequest,
    Embedding,
    EmbeddingList,
    EmbeddingsRequest,
    RerankRequest,
    RerankResult,
    RerankResults,
    RerankText,
)

_encode = msgspec.json.Encoder().encode

Rows = npt.NDArray[np.float32]


class EmbeddingsRoute:
    """Embeds texts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(EmbeddingsRequest)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        await exchange.attend(self._answer(exchange, self._decoder.decode(body)))

    async def _answer(self, exchange: Exchange, request: EmbeddingsRequest) -> None:
        deployment = self._parts.deployments.encoder(request.model)
        exchange.model = deployment.name
        inputs = split_inputs(
            request.input, param="input", max_inputs=self._parts.settings.max_batch_inputs
        )
        encoded = await deployment.encode(inputs, truncate=bool(request.truncate))
        rows = _narrowed(encoded.rows, request.dimensions)
        self._parts.metrics.encoded(deployment.name, num_tokens=encoded.num_tokens)
        vectors: Iterable[list[float] | str] = rows.tolist()
        if request.encoding_format == "base64":
            vectors = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
        data = [Embedding(index=i, embedding=vector) for i, vector in enumerate(vectors)]
        usage = _usage(encoded.num_tokens)
        await exchange.answer(_encode(EmbeddingList(data=data, model=deployment.name, usage=usage)))


class RerankRoute:
    """Orders documents by their relevance to a query."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(RerankRequest, refused=RERANK_REFUSED)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        await exchange.attend(self._answer(exchange, self._decoder.decode(body)))

    async def _answer(self, exchange: Exchange, request: RerankRequest) -> None:
        deployment = self._parts.deployments.encoder(request.model)
        exchange.model = deployment.name
        texts = [d.text if isinstance(d, RerankText) else d for d in request.documents]
        _check_count(len(texts), self._parts.settings.max_batch_inputs, param="documents")
        scored = await deployment.score(request.query, texts, truncate=bool(request.truncate))
        self._parts.metrics.encoded(deployment.name, num_tokens=scored.num_tokens)
        scores = scored.rows[:, 0]
        order = np.argsort(-scores, kind="stable")[: request.top_n]
        results = [
            RerankResult(
                index=int(index),
                relevance_score=float(scores[index]),
                document=RerankText(texts[index]) if request.return_documents else msgspec.UNSET,
            )
            for index in order
        ]
        await exchange.answer(
            _encode(
                RerankResults(
                    id=new_id("rerank-"),
                    model=deployment.name,
                    results=results,
                    usage=_usage(scored.num_tokens),
                )
            )
        )


class ClassifyRoute:
    """Classifies texts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(ClassifyRequest)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        await exchange.attend(self._answer(exchange, self._decoder.decode(body)))

    async def _answer(self, exchange: Exchange, request: ClassifyRequest) -> None:
        deployment = self._parts.deployments.classifier(request.model)
        exchange.model = deployment.name
        texts = [request.input] if isinstance(request.input, str) else request.input
        _check_count(len(texts), self._parts.settings.max_batch_inputs, param="input")
        encoded = await deployment.encode(texts, truncate=bool(request.truncate))
        self._parts.metrics.encoded(deployment.name, num_tokens=encoded.num_tokens)
        probabilities = _probabilities(encoded.rows, multi_label=deployment.multi_label)
        labels = list(deployment.labels)
        data = [_classification(i, row.tolist(), labels) for i, row in enumerate(probabilities)]
        await exchange.answer(
            _encode(
                ClassificationList(
                    id=new_id("classify-"),
                    created=int(time.time()),
                    model=deployment.name,
                    data=data,
                    usage=_usage(encoded.num_tokens),
                )
            )
        )


def _usage(num_tokens: int) -> EncodingUsage:
    return EncodingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


def _check_count(count: int, limit: int, *, param: str) -> None:
    if count > limit:
        raise InvalidRequest(
            f"{param}: {count} texts; send at most {limit} (gateway.max_batch_inputs)", param=param
        )


def _narrowed(rows: Rows, dimensions: int | None) -> Rows:
    """Keep the first `dimensions` numbers of each vector, at length one again."""
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    if dimensions > rows.shape[1]:
        raise InvalidRequest(
            f"dimensions: the model's vectors have {rows.shape[1]}; ask for no more",
            param="dimensions",
        )
    cut = rows[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(lengths, 1e-12), dtype=np.float32)


def _probabilities(logits: Rows, *, multi_label: bool) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    if multi_label:
        return np.asarray(1.0 / (1.0 + np.exp(-wide)))
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _classification(index: int, probs: list[float], labels: list[str]) -> Classification:
    best = max(range(len(probs)), key=probs.__getitem__)
    return Classification(
        index=index,
        label=labels[best],
        probs=probs,
        num_classes=len(probs),
        scores=dict(zip(labels, probs, strict=True)),
    )
