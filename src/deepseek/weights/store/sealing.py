"""Sealed chunks: each encrypted on its own with AES-256-GCM, so that any one can be opened alone.

The key that a key source hands out never meets data: HKDF-SHA256 (RFC 5869) makes of it, with the
manifest's random salt, the data key of one import. Under that key the nonce is the chunk's number,
which is used once. Model, revision, number and count are authenticated with each chunk, so that no
chunk can stand in another's place.
"""

from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.weights.store.manifest import Manifest

_KEY_BYTES = 32
_NONCE_BYTES = 12


class ChunkCipher:
    """Seals and opens the chunks of one model revision."""

    def __init__(self, data_key: bytes, *, manifest: Manifest, key_id: str) -> None:
        self._cipher = AESGCM(data_key)
        self._key_id = key_id
        self._context = f"{manifest.model}\0{manifest.revision}\0".encode()
        self._total = len(manifest.chunks)

    @classmethod
    def of(cls, manifest: Manifest, key: bytes) -> Self:
        """Return the cipher of a sealed manifest, whose revision is set."""
        sealing = manifest.sealing
        assert sealing is not None  # noqa: S101 - the caller has looked
        if len(key) != _KEY_BYTES:
            raise ConfigurationError(
                f"key {sealing.key_id!r} has {len(key)} bytes; AES-256 needs {_KEY_BYTES}"
            )
        salt = bytes.fromhex(sealing.salt)
        derivation = HKDF(SHA256(), length=_KEY_BYTES, salt=salt, info=b"deepseek-chunks/1")
        return cls(derivation.derive(key), manifest=manifest, key_id=sealing.key_id)

    def seal(self, content: memoryview, *, index: int) -> bytes:
        """Return what is stored for chunk `index`: the ciphertext and its tag."""
        return self._cipher.encrypt(_nonce(index), content, self._bound(index))

    def open(self, stored: memoryview, into: memoryview, *, index: int) -> None:
        """Put the content of chunk `index` into `into`, which is as much shorter as a tag is long.

        Raises `CorruptWeights` where the tag does not fit; `into` holds zeros then.
        """
        try:
            self._cipher.decrypt_into(_nonce(index), stored, self._bound(index), into)
        except InvalidTag:
            into[:] = bytes(len(into))
            raise CorruptWeights(
                f"cannot be opened with key {self._key_id!r}: it is the wrong key, or the chunk "
                "or its manifest was changed"
            ) from None

    def _bound(self, index: int) -> bytes:
        return self._context + index.to_bytes(8, "big") + self._total.to_bytes(8, "big")


def _nonce(index: int) -> bytes:
    return index.to_bytes(_NONCE_BYTES, "big")
