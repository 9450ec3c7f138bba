"""Text to token ids and back, outside the worker."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from deepseek.core.errors import ModelSourceError

_PRIMING_TOKENS = 8
"""Prompt tokens that a detokeniser sees first: whether an answer's first token begins with a space
depends on what is before it."""


class TextCodec:
    """One model's tokenizer."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json` of a model directory; raises `ModelSourceError`."""
        file = path / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise ModelSourceError(f"{file}: not a usable tokenizer: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of several texts, with special tokens."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def encode_pairs(
        self, left: str, rights: Iterable[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return ids and segment ids of (left, right) pairs, as a cross-encoder reads them."""
        encodings = self.tokenizer.encode_batch([(left, right) for right in rights])
        return [e.ids for e in encodings], [e.type_ids for e in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def detokenizer(self, prompt: Sequence[int]) -> "Detokenizer":
        """Return a detokeniser for one answer to `prompt`."""
        return Detokenizer(self, prompt)

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """Return one token's text and bytes; bytes that are no text alone show as U+FFFD."""
        piece = self.tokenizer.id_to_token(token_id) or ""
        if self._is_byte_level and all(char in self._byte_of for char in piece):
            data = bytes(self._byte_of[char] for char in piece)
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            data = bytes([int(piece[3:5], 16)])
        else:
            data = piece.replace("\u2581", " ").encode()
        return data.decode(errors="replace"), data

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in repr(self.tokenizer.decoder)

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The byte behind each character of a byte-level vocabulary (GPT-2's table)."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        table = {chr(byte): byte for byte in printable}
        others = (byte for byte in range(256) if byte not in set(printable))
        table.update({chr(256 + offset): byte for offset, byte in enumerate(others)})
        return table


class Detokenizer:
    """Turns one answer's tokens into text as they come, whole characters only."""

    def __init__(self, codec: TextCodec, prompt: Sequence[int]) -> None:
        self._codec = codec
        self._stream = DecodeStream(ids=list(prompt[-_PRIMING_TOKENS:]), skip_special_tokens=True)
        self._held: list[int] = []

    def add(self, token_ids: Sequence[int]) -> str:
        """Return the text that became complete; a character in pieces waits for its last token."""
        parts: list[str] = []
        for token_id in token_ids:
            text = self._stream.step(self._codec.tokenizer, token_id)
            if text is None:
                self._held.append(token_id)
            else:
                self._held.clear()
                parts.append(text)
        return "".join(parts)

    def finish(self) -> str:
        """Return what is left at the end: an incomplete character shows as U+FFFD."""
        held, self._held = self._held, []
        return self._codec.decode(held) if held else ""
