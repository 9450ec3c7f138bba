"""`/openapi.json`, made from the route table and the Structs that decode and encode the bodies.

What a Struct cannot say is added here: which models there are, the deployment's own limits, and
that a list of inputs is all texts or all token ids.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

import deepseek
from deepseek.core.errors import (
    BodyTooLarge,
    DeepseekError,
    EngineFault,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
    Unavailable,
)
from deepseek.core.requests import Task
from deepseek.gateway.errors import (
    BodyTimeout,
    ErrorBody,
    MethodNotAllowed,
    UnsupportedMediaType,
    status_of,
)
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_base import MAX_INT32
from deepseek.gateway.routes import RouteSpec

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_WORK_ERRORS: tuple[type[DeepseekError], ...] = (
    InvalidRequest,
    ModelNotFound,
    MethodNotAllowed,
    BodyTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    Overloaded,
    EngineFault,
    Unavailable,
    RequestTimeout,
)
_MEANINGS = {
    400: "The request is not valid; `param` names the field.",
    403: "The deployments take no adapters over HTTP.",
    404: "No such model, adapter or route.",
    405: "The path has another method, named in `allow`.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "The model's queue is full.",
    500: "The server is at fault.",
    503: "The model cannot answer now.",
    504: "The request took longer than the deployment allows.",
}


def openapi_document(specs: Sequence[RouteSpec], parts: Parts) -> bytes:
    """Return the OpenAPI 3.1 document as JSON."""
    kinds = [kind for spec in specs for kind in (spec.request, spec.response) if kind is not None]
    schemas, components = msgspec.json.schema_components([*kinds, ErrorBody], ref_template=_REF)
    of_kind = dict(zip(map(repr, kinds), schemas, strict=False))
    for spec in specs:
        if spec.request is not None:
            _describe_deployment(components[spec.request.__name__]["properties"], spec, parts)
    paths: dict[str, Json] = {}
    for spec in specs:
        paths.setdefault(spec.path, {})[spec.method.lower()] = _operation(spec, of_kind)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "deepseek",
                "version": deepseek.__version__,
                "description": "Models served through the OpenAI API.",
            },
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _describe_deployment(properties: Json, spec: RouteSpec, parts: Parts) -> None:
    """Narrow a request's properties to what this deployment takes."""
    names = [
        status.name
        for status in parts.deployments.statuses()
        if status.task in spec.tasks
        and not (spec.adapts and status.parent)
        and not (spec.reranks and len(parts.deployments.encoder(status.name).labels) > 1)
    ]
    if names:
        is_optional = "default" in properties["model"]
        choices = [*names, None] if is_optional else names
        properties["model"] = {**properties["model"], "enum": choices}
    max_inputs = parts.settings.max_batch_inputs
    if "n" in properties:
        properties["n"] = _nullable(
            {"type": "integer", "minimum": 1, "maximum": parts.settings.max_n}
        )
    for name in ("input", "prompt"):
        if name in properties:
            properties[name] = _inputs(max_inputs, with_tokens=Task.CLASSIFY not in spec.tasks[:1])
    if "documents" in properties:
        properties["documents"]["maxItems"] = max_inputs


def _inputs(max_inputs: int, *, with_tokens: bool) -> Json:
    text: Json = {"type": "string", "minLength": 1}
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": max_inputs}
    if not with_tokens:
        return {"anyOf": [text, texts]}
    token = {"type": "integer", "minimum": 0, "maximum": MAX_INT32}
    tokens: Json = {"type": "array", "items": token, "minItems": 1}
    several = {"type": "array", "items": tokens, "minItems": 1, "maxItems": max_inputs}
    return {"anyOf": [text, texts, tokens, several]}


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}], "default": None}


def _operation(spec: RouteSpec, of_kind: dict[str, Json]) -> Json:
    operation: Json = {
        "operationId": spec.name,
        "summary": spec.summary,
        "responses": _responses(spec, of_kind),
    }
    if spec.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of_kind[repr(spec.request)]}},
        }
    if "{model}" in spec.path:
        operation["parameters"] = [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
                "description": "Name of a deployment; it may contain slashes.",
            }
        ]
    return operation


def _responses(spec: RouteSpec, of_kind: dict[str, Json]) -> Json:
    schema = {"type": "string"} if spec.response is None else of_kind[repr(spec.response)]
    content: Json = {spec.media: {"schema": schema}}
    if spec.streams:
        content["text/event-stream"] = {
            "schema": {
                "type": "object",
                "description": "One event of the answer to `stream: true`.",
                "properties": {
                    "data": {
                        "type": "string",
                        "description": "A chunk of the answer as JSON, an error, or `[DONE]`.",
                    }
                },
                "required": ["data"],
            }
        }
    answer = _response("The answer.", content)
    if spec.streams:
        answer["headers"]["X-Deepseek-Precision"] = {
            "description": "What it was computed in, of models with several precisions.",
            "schema": {"enum": ["int8", "int4"]},
        }
    responses: Json = {"200": answer}
    errors: Iterable[type[DeepseekError]] = (*_WORK_ERRORS, *spec.errors)
    if spec.request is None:
        errors = (MethodNotAllowed, EngineFault)
        if "{model}" in spec.path:
            errors = (ModelNotFound, *errors)
    error_body: Json = {"application/json": {"schema": {"$ref": _REF.format(name="ErrorBody")}}}
    for error in errors:
        status = status_of(error(""))
        response = _response(_MEANINGS[status], error_body)
        if status in (429, 503):
            response["headers"]["Retry-After"] = {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer", "minimum": 1},
            }
        if status == 405:
            response["headers"]["Allow"] = {"schema": {"type": "string"}}
        responses[str(status)] = response
    if spec.not_ready is not None:
        content = {"application/json": {"schema": of_kind[repr(spec.not_ready)]}}
        responses["503"] = _response("Not every deployment takes requests.", content)
    return responses


def _response(description: str, content: Json) -> Json:
    return {
        "description": description,
        "headers": {
            "X-Request-Id": {
                "description": "The client's value, or one made here; the log names it.",
                "schema": {"type": "string"},
            }
        },
        "content": content,
    }
