"""Models for the tests: tiny ones built here, and the real default ones from the model cache."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek.weights.cache import ModelCache
from deepseek.weights.child_process import environment_of_own_modules

DEFAULT_MODELS = ("smollm2-135m", "minilm-l6", "sentiment")
_FIXTURE_TIMEOUTS_S = {"model_home": 900, "tiny_": 120}
"""The first test that asks for one of these pays for building it (or for importing torch)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        names: tuple[str, ...] = getattr(item, "fixturenames", ())
        needed = [
            timeout
            for prefix, timeout in _FIXTURE_TIMEOUTS_S.items()
            if any(name.startswith(prefix) for name in names)
        ]
        own = item.get_closest_marker("timeout")
        longest = max([*needed, *(own.args if own is not None else ())], default=0)
        if needed and longest:
            item.add_marker(pytest.mark.timeout(longest), append=False)


@pytest.fixture(scope="session")
def model_home() -> Path:
    """The real model cache (a `DEEPSEEK_HOME`), with the three default models in it."""
    cache = ModelCache.default()
    for name in DEFAULT_MODELS:
        if name not in cache:
            _add_to_cache(name)
    return cache.root


def _add_to_cache(name: str) -> None:
    # A process of its own: it may use the network, which the tests may not.
    result = subprocess.run(
        [sys.executable, "-m", "deepseek.cli.main", "models", "add", name],
        env={**os.environ, **environment_of_own_modules()},
        capture_output=True,
        text=True,
        check=False,
    )
    if "could not be downloaded" in result.stderr:
        pytest.skip(f"{name} is not in the model cache and no package index is reachable")
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("llama", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_mistral_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("mistral", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("gpt2", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_qwen2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("qwen2", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_qwen3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("qwen3", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_qwen3_moe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("qwen3_moe", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_mixtral_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("mixtral", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_deepseek_v2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("deepseek_v2", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_deepseek_v3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("deepseek_v3", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("bert", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_classifier_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a classification head of three labels."""
    return _tiny("bert", tmp_path_factory, labels=("cold", "mild", "hot"))


@pytest.fixture(scope="session")
def tiny_mpnet_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny("mpnet", tmp_path_factory)


def _tiny(family: str, factory: pytest.TempPathFactory, **options: Any) -> Path:
    # Imported on use: tests that need no model do not wait for torch and transformers.
    write = getattr(importlib.import_module("tests.tiny_models"), f"write_{family}")
    path: Path = write(factory.mktemp(family) / f"tiny-{family}", **options)
    return path
