"""Sealed models in a real worker process: served with their key, refused without, beside others."""

from pathlib import Path

import pytest

from deepseek.core.errors import ModelUnavailable
from deepseek.serving.platform import Platform
from deepseek.serving.settings import ModelSettings
from deepseek.weights.cache import ModelCache
from deepseek.weights.store.importing import SealingKey
from tests.serving.workers import collect, greedy_options, running_platform

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(120)]

KEY = SealingKey(key_id="team-a", key=bytes(range(32)))


async def answer(platform: Platform, model: str) -> list[int]:
    tokens, _, _ = await collect(platform.generator(model), [5, 6, 7], greedy_options(8))
    return tokens


def given(key: dict[str, str], **settings: str) -> ModelSettings:
    return ModelSettings.model_validate({"source": "-", "key": key, **settings})


async def test_a_sealed_model_serves_with_its_key_and_is_refused_without(
    tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ModelCache(tmp_path)
    sealed = cache.add_chunks("sealed", tiny_llama_dir, seal=KEY)
    encoder = cache.add_chunks("encoder", tiny_bert_dir, seal=KEY)
    right = tmp_path / "right.key"
    right.write_text(KEY.key.hex())
    right.chmod(0o600)
    monkeypatch.setenv("WRONG_KEY", bytes(32).hex())  # a worker has its platform's environment
    models = dict.fromkeys(("opened", "wrong", "missing", "keyless"), sealed)
    models |= {"plain": tiny_llama_dir, "plain with a key": tiny_llama_dir, "encoder": encoder}
    settings = {
        "opened": given({"file": str(right)}, verify="always"),
        "encoder": given({"file": str(right)}),
        "wrong": given({"env": "WRONG_KEY"}),
        "missing": given({"file": str(tmp_path / "gone.key")}),
        "plain with a key": given({"file": str(right)}),
    }
    refused = {
        "wrong": "cannot be opened with key 'team-a': it is the wrong key",
        "missing": r"the key file .*gone\.key cannot be read",
        "keyless": r"sealed with key 'team-a'; say where it is \(models\.NAME\.key\)",
        "plain with a key": r"key: the weights in .* are not sealed",
    }
    async with running_platform(models, settings=settings) as platform:
        assert await answer(platform, "opened") == await answer(platform, "plain")
        assert len((await platform.encoder("encoder").encode(["still here"])).rows) == 1
        for name, words in refused.items():
            with pytest.raises(ModelUnavailable, match=words):
                await answer(platform, name)
