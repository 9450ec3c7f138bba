"""Runs the conversion subprocesses on small inputs that the tests write."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from deepseek.core.errors import ConfigurationError, CorruptWeights, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.weights.conversion import convert_gguf, train_sentiment
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.progress import SilentProgress, Unit
from tests.weights.gguf_files import CHAT_TEMPLATE, write_gguf

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Recorder:
    """Remembers stages and how far each came."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done: list[int] = []

    def stage(self, name: str, *, total: int | None = None, unit: Unit = "steps") -> None:
        self.stages.append((name, total))
        self.done.append(0)

    def advance(self, amount: int = 1) -> None:
        self.done[-1] += amount


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def gguf(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return write_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")


def test_a_gguf_file_becomes_the_model_it_was_made_from(
    tiny_llama_dir: Path, gguf: Path, target: Path
) -> None:
    progress = Recorder()
    convert_gguf(gguf, target, progress)
    directory = open_model_directory(target)
    assert (directory.architecture, directory.task) == ("LlamaForCausalLM", Task.GENERATE)
    assert (directory.max_model_len, directory.eos_token_ids) == (512, (2,))
    assert directory.config["dtype"] == "bfloat16"
    expected = load_file(tiny_llama_dir / "model.safetensors")
    with safe_open(target / "model.safetensors", framework="pt") as converted:
        assert set(converted.keys()) == set(expected)
        for name, tensor in expected.items():
            # bfloat16 keeps 8 bits of the mantissa.
            np.testing.assert_allclose(converted.get_tensor(name).float(), tensor, rtol=2**-8)
    assert progress.stages == [("converting tiny.gguf to safetensors", 4)]
    assert progress.done == [4]


def test_a_converted_tokenizer_is_the_original_one(
    tiny_llama_dir: Path, gguf: Path, target: Path
) -> None:
    from tokenizers import Tokenizer  # noqa: PLC0415 - only here

    convert_gguf(gguf, target, SilentProgress())
    original = Tokenizer.from_file(str(tiny_llama_dir / "tokenizer.json"))
    converted = Tokenizer.from_file(str(target / "tokenizer.json"))
    text = "<|im_start|>user\nGrüße, 你好 🙂 once upon a time<|im_end|>\n"
    ids = converted.encode(text, add_special_tokens=False).ids
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert ids[0] == 1  # one token, not its characters
    assert 2 in ids
    assert converted.decode(ids) == text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert (target / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    settings = json.loads((target / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>"  # noqa: S105 - no password
    assert settings["model_max_length"] == 512


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, target: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model at all")
    with pytest.raises(CorruptWeights, match=r"model\.gguf is not a GGUF file"):
        convert_gguf(file, target, SilentProgress())


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_gguf_file_cut_short_is_refused(gguf: Path, target: Path, share: float) -> None:
    data = gguf.read_bytes()
    gguf.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorruptWeights, match=r"damaged GGUF file .*fetch it again"):
        convert_gguf(gguf, target, SilentProgress())


def test_a_gguf_file_without_one_tensor_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, target: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tiny_llama_dir, tmp_path / "short.gguf", leave_out=name)
    with pytest.raises(CorruptWeights, match=name):
        convert_gguf(file, target, SilentProgress())


def test_a_gguf_file_of_an_unknown_architecture_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, target: Path
) -> None:
    file = write_gguf(tiny_llama_dir, tmp_path / "odd.gguf", architecture="oddity")
    with pytest.raises(UnsupportedModel, match="oddity"):
        convert_gguf(file, target, SilentProgress())


GOOD = "the film was a wonderful surprise"
BAD = "the book a dull and terrible disappointment"


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """A source archive like vaderSentiment's: rated texts in an archive inside the archive."""
    lines = [f"{n}\t{3 if n % 2 else -3}\t{GOOD if n % 2 else BAD} {n}" for n in range(60)]
    content = "\r\n".join(lines).encode()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for stem in ("movieReviewSnippets", "amazonReviewSnippets", "tweets"):
            add_file(archive, f"hutto_ICWSM_2014/{stem}_GroundTruth.txt", content)
    path = tmp_path / "rated-1.0.tar.gz"
    with tarfile.open(path, mode="w:gz") as archive:
        add_file(archive, "rated-1.0/additional/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return path


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def encoder(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "encoder"
    path.mkdir()
    for file in tiny_bert_dir.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return path


def test_training_writes_a_classifier_that_tells_the_texts_apart(
    encoder: Path, ratings: Path, target: Path
) -> None:
    progress = Recorder()
    train_sentiment(encoder, ratings, target, progress)
    directory = open_model_directory(target)
    assert directory.task is Task.CLASSIFY
    assert directory.labels == ("negative", "positive")
    assert directory.sentence is not None
    assert directory.sentence.pooling == "mean"
    assert not directory.sentence.normalize
    assert directory.sentence.dense[0].out_features == 2
    report = json.loads((target / "training.json").read_text())
    assert report["held_out_accuracy"] == 1.0
    assert report["num_train"] + report["num_held_out"] == 180
    assert "100.0%" in (target / "README.md").read_text()
    name, total = progress.stages[0]
    assert (name, progress.done[0]) == (f"encoding {total} rated snippets", total)


def test_training_twice_gives_the_same_weights(
    encoder: Path, ratings: Path, tmp_path: Path
) -> None:
    weights = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        train_sentiment(encoder, ratings, tmp_path / name, SilentProgress())
        weights.append((tmp_path / name / "2_Dense" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_an_archive_without_ratings_is_refused(encoder: Path, tmp_path: Path, target: Path) -> None:
    path = tmp_path / "empty.tar.gz"
    with tarfile.open(path, mode="w:gz") as archive:
        add_file(archive, "empty/README", b"nothing")
    with pytest.raises(CorruptWeights, match=r"hutto_ICWSM_2014\.tar\.gz"):
        train_sentiment(encoder, path, target, SilentProgress())


def test_an_unexpected_failure_names_the_conversion_and_the_cause(
    encoder: Path, ratings: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"train_sentiment ended with exit code 1.*absent"):
        train_sentiment(encoder, ratings, tmp_path / "absent", SilentProgress())
