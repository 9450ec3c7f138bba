"""The error tree on the wire."""

import json
import re
from pathlib import Path

import pytest

from deepseek.core.errors import DeepseekError, Overloaded, error_classes
from deepseek.gateway.errors import encode_error, error_headers, status_of
from deepseek.gateway.protocol_chat import CHAT_REFUSED, ChatRequest
from deepseek.gateway.protocol_completions import COMPLETION_REFUSED, CompletionRequest
from deepseek.gateway.protocol_encoders import (
    RERANK_REFUSED,
    ClassifyRequest,
    EmbeddingsRequest,
    RerankRequest,
)

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


@pytest.mark.parametrize("error_class", error_classes().values(), ids=lambda cls: cls.code)
def test_every_error_has_a_status_and_a_body(error_class: type[DeepseekError]) -> None:
    error = error_class("what is wrong", param="field")
    assert 400 <= status_of(error) < 600
    body = json.loads(encode_error(error))["error"]
    kinds = {429: "rate_limit_error"}
    default = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    assert body["type"] == kinds.get(status_of(error), default)


def test_a_retry_is_at_least_a_whole_second_away() -> None:
    for seconds, shown in ((0.0, b"1"), (0.2, b"1"), (2.0, b"2"), (2.1, b"3")):
        assert error_headers(Overloaded("", retry_after_s=seconds)) == [(b"retry-after", shown)]


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}|-) \|", DOCS, re.MULTILINE))
    for code, error_class in error_classes().items():
        assert code in rows, f"docs/api.md does not explain the error {code}"
        if rows[code] != "-":
            assert int(rows[code]) == status_of(error_class(""))
    assert set(rows) == set(error_classes())


def test_every_parameter_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", DOCS))
    structs = (ChatRequest, CompletionRequest, EmbeddingsRequest, RerankRequest, ClassifyRequest)
    for struct in structs:
        assert set(struct.__struct_fields__) <= documented
    for refused in (CHAT_REFUSED, COMPLETION_REFUSED, RERANK_REFUSED):
        assert set(refused) <= documented
