"""What hands out the keys of sealed models, and how a key is written down."""

import base64
import binascii
from typing import Protocol

from deepseek.core.errors import ConfigurationError

KEY_BYTES = 32


class KeySource(Protocol):
    """Knows keys by their ids.

    It is made, of what the settings give it, in every process that reads the settings, and asked in
    the worker that loads the model: making one must touch no key, and `ConfigurationError` says
    that what it was given makes no sense. Asking may block: for a program, or for a broker.
    """

    def __call__(self, key_id: str, /) -> bytes:
        """Return the 32 bytes of the key with this id.

        Raises `ConfigurationError`, which says where the key was looked for and never what was
        found there.
        """
        ...


def key_of(text: bytes, *, place: str) -> bytes:
    """Return the key that is written down as 64 hexadecimal digits or as base64.

    Raises `ConfigurationError` naming `place`, and nothing of the text.
    """
    key = _decoded(text.strip())
    if key is None or len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{place} holds no key: write its {KEY_BYTES} bytes as 64 hexadecimal digits or as "
            "base64 (openssl rand -hex 32)"
        )
    return key


def _decoded(text: bytes) -> bytes | None:
    try:
        if len(text) == 2 * KEY_BYTES:
            return binascii.unhexlify(text)
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
