"""Text to tokens and back: whole characters, whatever the tokens cut."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.core.errors import ModelSourceError
from deepseek.serving.text_codec import TextCodec


@pytest.fixture(scope="module")
def codec(tiny_llama_dir: Path) -> TextCodec:
    return TextCodec(tiny_llama_dir)


def stream(codec: TextCodec, token_ids: list[int], prompt: list[int]) -> list[str]:
    detokenizer = codec.detokenizer(prompt)
    return [*(detokenizer.add([token]) for token in token_ids), detokenizer.finish()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(text=st.text(max_size=40))
def test_streamed_pieces_join_to_the_text(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text, add_special_tokens=False)
    assert "".join(stream(codec, ids, codec.encode("a prompt"))) == codec.decode(ids)


@pytest.mark.parametrize("text", ["𓂀𓃠", "ꙮ⟁", "꧁ and ꧂"])
def test_no_piece_holds_a_broken_character(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text, add_special_tokens=False)
    assert len(ids) > len(text), "the vocabulary should cut these characters"
    pieces = stream(codec, ids, [])
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text


def test_a_character_that_never_completes_shows_once_at_the_end(codec: TextCodec) -> None:
    ids = codec.encode("𓂀", add_special_tokens=False)
    pieces = stream(codec, ids[:-1], [])
    assert pieces[:-1] == [""] * (len(ids) - 1)
    assert set(pieces[-1]) == {"\ufffd"}


def test_token_bytes_join_to_the_text(codec: TextCodec) -> None:
    text = "Grüße 🙂"
    ids = codec.encode(text, add_special_tokens=False)
    assert b"".join(codec.token_text(token)[1] for token in ids).decode() == text


def test_special_tokens_are_not_shown(codec: TextCodec) -> None:
    ids = codec.encode("<|im_start|>hello<|im_end|>", add_special_tokens=False)
    assert codec.decode(ids) == "hello"
    assert "".join(stream(codec, ids, [])) == "hello"


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelSourceError, match=r"tokenizer\.json"):
        TextCodec(tmp_path)
