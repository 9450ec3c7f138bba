"""What a worker needs in order to start."""

import os
from pathlib import Path

import pytest

from tests.serving.workers import collect, greedy_options, running_platform

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every `import transformers` in a worker fail."""
    package = tmp_path / "first" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('transformers is imported')\n")
    existing = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(package.parent), existing) if part)
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.usefixtures("without_transformers")
async def test_decoders_and_packed_encoders_need_no_transformers(
    tiny_llama_dir: Path, tiny_bert_dir: Path, tiny_classifier_dir: Path, tiny_mpnet_dir: Path
) -> None:
    models = {
        "decoder": tiny_llama_dir,
        "encoder": tiny_bert_dir,
        "classifier": tiny_classifier_dir,
        "padded": tiny_mpnet_dir,
    }
    async with running_platform(models) as platform:
        tokens, _, _ = await collect(platform.generator("decoder"), [1, 2, 3], greedy_options(5))
        assert len(tokens) == 5
        for name in ("encoder", "classifier"):
            encoded = await platform.encoder(name).encode(["a sentence"])
            assert len(encoded.rows) == 1
        # The one that does need it says so, and shows that the others could not have had it.
        info = platform.replicas[0].model("padded")
        assert info is not None
        assert "transformers is imported" in (info.error or "")
