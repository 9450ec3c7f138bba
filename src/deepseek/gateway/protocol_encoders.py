"""Bodies of `/v1/embeddings`, `/v1/rerank` and `/v1/classify`."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from deepseek.gateway.protocol_base import EncodingUsage, ModelName, Refusal, TokenId

NonEmpty = Annotated[str, Meta(min_length=1)]
EncoderInput = (
    NonEmpty
    | Annotated[
        list[NonEmpty | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)
    ]
)
Truncate = Annotated[
    bool, Meta(description="Extension. Cut inputs that are too long instead of refusing them.")
]


class EmbeddingsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts to embed."""

    model: ModelName
    input: EncoderInput
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65536)] | None = None
    user: str | None = None
    truncate: Truncate | None = None


class Embedding(Struct, frozen=True, kw_only=True):
    """One input's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or with `encoding_format: base64` little-endian float32 in base64."""


class EmbeddingList(Struct, frozen=True, kw_only=True):
    """Vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EncodingUsage


class RerankText(Struct, forbid_unknown_fields=True, frozen=True):
    """A document."""

    text: NonEmpty


class RerankRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Documents to order by their relevance to a query."""

    model: ModelName
    query: NonEmpty
    documents: Annotated[list[NonEmpty | RerankText], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    user: str | None = None
    truncate: Truncate | None = None


RERANK_REFUSED = {
    "max_chunks_per_doc": Refusal(remedy="documents are not cut into chunks; use `truncate`"),
    "max_tokens_per_doc": Refusal(remedy="use `truncate`"),
    "rank_fields": Refusal(remedy="send each document as one text"),
}


class RerankResult(Struct, frozen=True, kw_only=True):
    """One document's relevance."""

    index: int
    relevance_score: float
    document: RerankText | UnsetType = UNSET


class RerankResults(Struct, frozen=True, kw_only=True):
    """Documents, the most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EncodingUsage


class ClassifyRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts to classify."""

    model: ModelName
    input: NonEmpty | Annotated[list[NonEmpty], Meta(min_length=1)]
    user: str | None = None
    truncate: Truncate | None = None


class Classification(Struct, frozen=True, kw_only=True):
    """One input's most probable label, and the probability of each."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    scores: dict[str, float]


class ClassificationList(Struct, frozen=True, kw_only=True):
    """Classifications in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: EncodingUsage
