"""Errors of the HTTP edge, and the one place that turns any error into an answer.

The edge adds these to the tree in `deepseek.core.errors`:

    InvalidRequest
    ├── InvalidJson                    invalid_json              400
    ├── RouteNotFound                  route_not_found           404
    ├── MethodNotAllowed               method_not_allowed        405
    ├── BodyTimeout                    body_timeout              408
    └── UnsupportedMediaType           unsupported_media_type    415
    InternalError                      internal_error            500
    HeadTooLarge                       head_too_large            431   (see `listener.py`)
"""

import math
from typing import Literal

import msgspec

from deepseek.core.errors import (
    AdapterLoadingOff,
    AdapterNotFound,
    BodyTooLarge,
    ConfigurationError,
    DeepseekError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
    RetryLater,
)

MAX_MESSAGE_CHARS = 2000
"""Messages quote the request; a quoted megabyte helps nobody."""


class InvalidJson(InvalidRequest):
    """The body is not JSON in UTF-8."""

    code = "invalid_json"


class RouteNotFound(InvalidRequest):
    """No route has this path."""

    code = "route_not_found"


class MethodNotAllowed(InvalidRequest):
    """The path exists, with another method."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, param: str | None = None, allow: str = "") -> None:
        super().__init__(message, param=param)
        self.allow = allow


class BodyTimeout(InvalidRequest):
    """The client took longer than `gateway.body_timeout_s` to send its body."""

    code = "body_timeout"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON, or is compressed."""

    code = "unsupported_media_type"


class HeadTooLarge(InvalidRequest):
    """The request line and headers exceed what the listener keeps."""

    code = "head_too_large"


class InternalError(DeepseekError):
    """A fault of the platform; the log has its cause under the request id."""

    code = "internal_error"


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, in the OpenAI API's words."""

    message: str
    """For a person: names the field and the remedy."""
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The request field at fault, as a path such as `messages[0].content`."""
    code: str
    """Stable name of the error."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not 2xx, and of a stream's error event."""

    error: ErrorDetail


_STATUS: dict[type[DeepseekError], int] = {
    AdapterLoadingOff: 403,
    AdapterNotFound: 404,
    BodyTimeout: 408,
    BodyTooLarge: 413,
    HeadTooLarge: 431,
    MethodNotAllowed: 405,
    ModelNotFound: 404,
    RouteNotFound: 404,
    UnsupportedMediaType: 415,
    InvalidRequest: 400,
    Overloaded: 429,
    RetryLater: 503,
    RequestTimeout: 504,
    DeepseekError: 500,
}


def status_of(error: DeepseekError) -> int:
    """Return the HTTP status of an error: that of its nearest ancestor in the table."""
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)


def encode_error(error: DeepseekError) -> bytes:
    """Return the JSON body of an error.

    What the operator must mend (a path, a file) is not shown to clients.
    """
    if isinstance(error, ConfigurationError):
        error = InternalError("the model's configuration is at fault; the server's log says how")
    status = status_of(error)
    if status == 429:
        kind: Literal["invalid_request_error", "rate_limit_error", "server_error"] = (
            "rate_limit_error"
        )
    else:
        kind = "server_error" if status >= 500 else "invalid_request_error"
    detail = ErrorDetail(
        message=_shortened(error.message), type=kind, param=error.param, code=error.code
    )
    return msgspec.json.encode(ErrorBody(error=detail))


def error_headers(error: DeepseekError) -> list[tuple[bytes, bytes]]:
    """Return the headers an error adds to its answer."""
    if isinstance(error, RetryLater):
        return [(b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode())]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", error.allow.encode())]
    return []


def _shortened(message: str) -> str:
    if len(message) <= MAX_MESSAGE_CHARS:
        return message
    return message[:MAX_MESSAGE_CHARS] + "…"
