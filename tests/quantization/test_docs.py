"""docs/quantization.md: its snippets run, its tables have every field."""

import re
from pathlib import Path
from typing import Any

import pytest

from deepseek.core.settings import Settings
from deepseek.core.yaml_document import read_yaml
from deepseek.quantization import MixedPrecisionConfig, SwitchPolicy
from deepseek.quantization.config import LayerRule

TEXT = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_first_snippet_runs_on_any_model(tiny_llama_dir: Path) -> None:
    snippet = blocks("python")[0]
    assert '"smollm2-135m"' in snippet
    scope: dict[str, Any] = {}
    exec(snippet.replace("smollm2-135m", str(tiny_llama_dir)), scope)  # noqa: S102 - our own page
    assert scope["report"].is_met


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_snippet_runs_as_it_stands(
    model_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSEEK_HOME", str(model_home))
    scope: dict[str, Any] = {}
    exec(blocks("python")[0], scope)  # noqa: S102 - our own page
    assert scope["report"].accuracy.relative >= 0.98
    assert not scope["report"].promotions


def test_the_yaml_is_a_config() -> None:
    (text,) = blocks("yaml")
    config = MixedPrecisionConfig.model_validate(read_yaml(text).data)
    assert config.rules[1] == LayerRule(layers="*.down_proj", precision="int8")
    assert config.dynamic_switch is not None


@pytest.mark.parametrize("settings", [MixedPrecisionConfig, SwitchPolicy])
def test_every_field_has_its_row(settings: type[Settings]) -> None:
    assert [name for name in settings.model_fields if f"| `{name}` |" not in TEXT] == []
