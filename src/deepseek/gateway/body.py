"""Request bodies: read within limits, decoded into Structs, faults told field by field."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from deepseek.core.errors import BodyTooLarge, InvalidRequest, UnsupportedParameter
from deepseek.gateway.errors import BodyTimeout, InvalidJson, UnsupportedMediaType
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.protocol_base import Refusal
from deepseek.gateway.settings import GatewaySettings

T = TypeVar("T")

_AT_PATH = re.compile(r"^(?P<what>.*?) - at (?:`(?P<key>key)` in )?`\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING_FIELD = re.compile(r"missing required field `(.*)`", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"contains unknown field `(.*)`", re.DOTALL)
_ANY_OBJECT = msgspec.json.Decoder(dict[str, Any])
_MEDIA_PART = re.compile(r"content\[\d+\]\.(type|image_url|input_audio|file|video_url)$")


class BodyDecoder(Generic[T]):
    """Decodes one route's bodies."""

    def __init__(self, kind: type[T], *, refused: Mapping[str, Refusal] | None = None) -> None:
        """Decode into the Struct `kind`; name the remedy for the parameters in `refused`."""
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._refused = refused or {}

    def decode(self, body: bytes) -> T:
        """Return the body as a Struct.

        Raises `InvalidJson`, `UnsupportedParameter`, or `InvalidRequest` naming the field.
        """
        try:
            return _decode(self._decoder, body)
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN_FIELD.search(str(error))
            if unknown is None or unknown[1] not in self._refused:
                raise _as_invalid_request(error) from None
        try:
            fields = _decode(_ANY_OBJECT, body)
            self._drop_harmless(fields)
            return msgspec.convert(fields, self._kind)
        except msgspec.ValidationError as error:
            raise _as_invalid_request(error) from None

    def _drop_harmless(self, fields: dict[str, Any]) -> None:
        for name, refusal in self._refused.items():
            if name not in fields:
                continue
            value = fields.pop(name)
            if value is not None and value not in refusal.harmless:
                raise UnsupportedParameter(
                    f"`{name}` is not supported here: {refusal.remedy}", param=name
                )


async def read_json_body(exchange: Exchange, settings: GatewaySettings) -> bytes:
    """Return the request's body.

    Raises `UnsupportedMediaType`, `BodyTooLarge` (from Content-Length before a byte is read, else
    at the byte too many), `BodyTimeout`, `ClientDisconnected`.
    """
    _check_headers(exchange, settings.max_body_bytes)
    parts: list[bytes] = []
    size = 0
    more = True
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            while more:
                part, more = await exchange.receive_body_part()
                size += len(part)
                if size > settings.max_body_bytes:
                    raise _too_large(settings.max_body_bytes)
                parts.append(part)
    except TimeoutError:
        raise BodyTimeout(
            f"the body took longer than {settings.body_timeout_s:g} s (gateway.body_timeout_s)"
        ) from None
    return b"".join(parts)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not valid JSON in UTF-8: {error}") from None
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None


def _check_headers(exchange: Exchange, max_body_bytes: int) -> None:
    media = (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if media != b"application/json":
        told = media.decode("latin-1") or "none"
        raise UnsupportedMediaType(
            f"the content type is {told}; send JSON with `content-type: application/json`"
        )
    encoding = exchange.header(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise UnsupportedMediaType("the body is compressed; send it as plain JSON")
    declared = exchange.header(b"content-length")
    if declared is not None and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit} bytes; send less, or raise gateway.max_body_bytes"
    )


def _as_invalid_request(error: msgspec.ValidationError) -> InvalidRequest:
    """Tell a decoding fault as one sentence, with the path of the field as `param`."""
    text = str(error)
    match = _AT_PATH.match(text)
    what, path = (match["what"], match["path"]) if match else (text, "")
    path = path.partition("[...]")[0]  # a key of a mapping, which msgspec does not tell
    field = _MISSING_FIELD.search(what) or _UNKNOWN_FIELD.search(what)
    if field is not None:
        path = f"{path}.{field[1]}" if path else field[1]
    if _MEDIA_PART.search(path) and ("unknown field" in what or what.startswith("Invalid")):
        return UnsupportedParameter(
            f"{path}: {what}; this deployment takes text parts only", param=path
        )
    return InvalidRequest(f"{path}: {what}" if path else what, param=path or None)
