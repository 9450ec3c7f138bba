"""LoRA adapters against PEFT: several in one batch, loaded and dropped while others serve."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek.core.errors import AdapterNotFound, AdapterRejected
from deepseek.core.wire import AdapterInfo, AdapterSpec
from deepseek.engine.adapters import AdapterMatrices, AdapterSet, load_listed
from deepseek.engine.models.base import Decoder
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.weights.adapter_directory import CONFIG_FILE, WEIGHTS_FILE
from tests.engine.stepping import greedy, logits
from tests.lora import greedy_answer, write_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),  # the first test waits for PEFT's import
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT 0.21
]

NUM_TOKENS = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 32}},
}
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["k_proj", "gate_proj"],
    "qwen3": ["v_proj", "o_proj"],
    "gpt2": ["c_attn", "c_fc"],
}
PROMPTS = [
    [random.Random(seed).randrange(3, 500) for _ in range(5 + 7 * seed)] for seed in range(5)
]


def decoder_of(path: Path) -> Decoder:
    return load_decoder(path, dtype=torch.float32, device="cpu", ops=ReferenceOps())


def adapter_set(decoder: Decoder, *, max_adapters: int = 4, max_rank: int = 16) -> AdapterSet:
    return AdapterSet(
        decoder.projections,
        dtype=torch.float32,
        device="cpu",
        max_adapters=max_adapters,
        max_rank=max_rank,
    )


def load(adapters: AdapterSet, name: str, path: Path) -> int:
    return adapters.load(name, adapters.read(path)).index


@pytest.fixture(scope="module")
def two_adapters(
    tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("adapters")
    return (
        write_adapter(tiny_llama_dir, path / "a", seed=1),
        write_adapter(tiny_llama_dir, path / "b", seed=2),
    )


@pytest.fixture
def changed(two_adapters: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies an adapter with other config fields or tensors."""

    def change(
        config: dict[str, Any] | None = None,
        tensors: Callable[[dict[str, torch.Tensor]], None] | None = None,
    ) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(two_adapters[0], copy)
        file = copy / CONFIG_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), **(config or {})}))
        if tensors is not None:
            held = load_file(copy / WEIGHTS_FILE)
            tensors(held)
            save_file(held, copy / WEIGHTS_FILE)
        return copy

    return change


@pytest.mark.parametrize("family", list(TARGETS))
def test_a_batch_of_several_adapters_answers_as_peft_does_one_by_one(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Path = request.getfixturevalue(f"tiny_{family}_dir")
    paths: list[Path | None] = [
        write_adapter(base, tmp_path / name, seed=seed, **config)
        for seed, (name, config) in enumerate(VARIANTS.items())
    ]
    paths.append(write_adapter(base, tmp_path / "some", seed=9, target_modules=TARGETS[family]))
    paths.append(None)
    decoder = decoder_of(base)
    adapters = adapter_set(decoder)
    indices = [0 if path is None else load(adapters, path.name, path) for path in paths]
    expected = [
        greedy_answer(base, path, prompt, NUM_TOKENS)
        for path, prompt in zip(paths, PROMPTS, strict=True)
    ]
    plain = greedy(decoder, PROMPTS, NUM_TOKENS)
    assert greedy(decoder, PROMPTS, NUM_TOKENS, adapters=indices) == expected
    changed = [answer != base for answer, base in zip(expected, plain, strict=True)]
    assert changed == [True, True, True, True, False], "the adapters are too weak to be seen"


def test_a_dropped_adapter_answers_until_its_last_request_ends(
    tiny_llama_dir: Path, two_adapters: tuple[Path, Path]
) -> None:
    decoder = decoder_of(tiny_llama_dir)
    adapters = adapter_set(decoder)
    load(adapters, "a", two_adapters[0])
    load(adapters, "b", two_adapters[1])
    first, second = adapters.acquire("a"), adapters.acquire("a")
    before = logits(decoder, PROMPTS[:2], adapters=[first.index, 0])
    adapters.drop("a")
    assert adapters.names == ["b"]
    with pytest.raises(AdapterNotFound, match="'a' is not loaded; loaded: b"):
        adapters.acquire("a")
    adapters.release(first)
    assert torch.equal(logits(decoder, PROMPTS[:2], adapters=[second.index, 0]), before)
    adapters.release(second)
    assert all(
        list(projection.adapters.parts) == [adapters.find("b").index]
        for projection in decoder.projections
        if projection.adapters is not None
    )
    adapters.drop("b")
    assert all(projection.adapters is None for projection in decoder.projections)


def test_loading_a_name_again_serves_new_requests_and_keeps_the_old_ones(
    tiny_llama_dir: Path, two_adapters: tuple[Path, Path]
) -> None:
    decoder = decoder_of(tiny_llama_dir)
    adapters = adapter_set(decoder)
    load(adapters, "a", two_adapters[0])
    old = adapters.acquire("a")
    before = logits(decoder, PROMPTS[:1], adapters=[old.index])
    load(adapters, "a", two_adapters[1])
    new = adapters.acquire("a")
    assert old.salt != new.salt, "their attention states must not be shared"
    both = logits(decoder, [PROMPTS[0], PROMPTS[0]], adapters=[old.index, new.index])
    torch.testing.assert_close(both[:1], before)
    assert greedy(decoder, PROMPTS[:1], NUM_TOKENS, adapters=[new.index]) == [
        greedy_answer(tiny_llama_dir, two_adapters[1], PROMPTS[0], NUM_TOKENS)
    ]
    adapters.release(old)
    load(adapters, "a", two_adapters[1])  # nobody uses the second load but `new`
    adapters.release(new)
    assert [len(p.adapters.parts) for p in decoder.projections if p.adapters] == [1] * len(
        decoder.projections
    )


def test_the_version_changes_with_the_weights_only(
    tiny_llama_dir: Path, two_adapters: tuple[Path, Path]
) -> None:
    adapters = adapter_set(decoder_of(tiny_llama_dir))
    seen = [adapters.version]
    load(adapters, "a", two_adapters[0])
    seen.append(adapters.version)
    held = adapters.acquire("a")
    adapters.drop("a")
    assert adapters.version == seen[-1]
    adapters.release(held)
    seen.append(adapters.version)
    assert len(set(seen)) == 3


def test_limits_refuse_what_would_not_fit_and_leave_the_others(
    tiny_llama_dir: Path, two_adapters: tuple[Path, Path]
) -> None:
    decoder = decoder_of(tiny_llama_dir)
    adapters = adapter_set(decoder, max_adapters=1)
    load(adapters, "a", two_adapters[0])
    with pytest.raises(AdapterRejected, match="max_adapters is 1; drop one first"):
        load(adapters, "b", two_adapters[1])
    load(adapters, "a", two_adapters[1])  # in the place of the one that nobody uses
    held = adapters.acquire("a")
    adapters.drop("a")
    with pytest.raises(AdapterRejected, match="1 dropped ones still answer"):
        load(adapters, "b", two_adapters[0])
    adapters.release(held)
    load(adapters, "b", two_adapters[0])
    with pytest.raises(AdapterRejected, match="has rank 4; max_adapter_rank is 2"):
        adapter_set(decoder, max_rank=2).read(two_adapters[0])


def _spoil(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values()))[0, 0] = value

    return change


def _add_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 64)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(512, 4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_add_head, r"lm_head; adaptable .*: down_proj, gate_proj, k_proj"),
        (_spoil(float("nan")), "infinite or undefined numbers"),
        (_spoil(float("inf")), r"in .*_proj"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_others_serve_on(
    tensors: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    tiny_llama_dir: Path,
    two_adapters: tuple[Path, Path],
    changed: Callable[..., Path],
) -> None:
    decoder = decoder_of(tiny_llama_dir)
    adapters = adapter_set(decoder)
    index = load(adapters, "a", two_adapters[0])
    before = logits(decoder, PROMPTS[:1], adapters=[index])
    with pytest.raises(AdapterRejected, match=message):
        load(adapters, "bad", changed(tensors=tensors))
    assert adapters.names == ["a"]
    assert torch.equal(logits(decoder, PROMPTS[:1], adapters=[index]), before)


def test_an_adapter_of_another_base_model_is_refused_by_its_shapes(
    tiny_llama_dir: Path, tiny_qwen3_dir: Path, two_adapters: tuple[Path, Path]
) -> None:
    adapters = adapter_set(decoder_of(tiny_qwen3_dir))
    with pytest.raises(
        AdapterRejected, match=r"another base model: .*k_proj.* to 32 features, .* to 64"
    ):
        adapters.read(two_adapters[0])


def test_an_adapter_with_huge_weights_leaves_its_neighbours_alone(
    tiny_llama_dir: Path, two_adapters: tuple[Path, Path], changed: Callable[..., Path]
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            if "lora_A" in name:
                tensors[name] = value.sign() * 3e38  # finite; its products are not

    decoder = decoder_of(tiny_llama_dir)
    adapters = adapter_set(decoder)
    huge, sane = (
        load(adapters, "huge", changed(tensors=enlarge)),
        load(adapters, "a", two_adapters[0]),
    )
    alone = logits(decoder, PROMPTS[:2], adapters=[sane, 0])
    beside = logits(decoder, [*PROMPTS[:2], PROMPTS[2]], adapters=[sane, 0, huge])
    assert not beside[2].isfinite().all(), "the neighbour is not bad enough to show anything"
    torch.testing.assert_close(beside[:2], alone)


def test_layers_are_found_in_a_checkpoint_of_the_bare_model(
    tiny_gpt2_dir: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_gpt2_dir, bare)
    tensors = load_file(bare / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): value for name, value in tensors.items()},
        bare / "model.safetensors",
        metadata={"format": "pt"},
    )
    path = write_adapter(tiny_gpt2_dir, tmp_path / "a", seed=4)
    decoder = decoder_of(bare)
    index = load(adapter_set(decoder), "a", path)
    assert greedy(decoder, PROMPTS[:1], NUM_TOKENS, adapters=[index]) == [
        greedy_answer(tiny_gpt2_dir, path, PROMPTS[0], NUM_TOKENS)
    ]


class Host:
    """An engine's side of `AdapterHost`."""

    def __init__(self, adapters: AdapterSet) -> None:
        self.adapters = adapters

    @property
    def adapter_names(self) -> list[str]:
        return self.adapters.names

    def prepare_adapter(self, name: str, path: Path) -> Callable[[], None]:
        matrices = self.adapters.read(path)
        return partial(self._load, name, matrices)

    def drop_adapter(self, name: str) -> None:
        self.adapters.drop(name)

    def _load(self, name: str, matrices: AdapterMatrices) -> None:
        self.adapters.load(name, matrices)


def test_of_the_listed_adapters_those_that_cannot_be_loaded_are_reported(
    tiny_llama_dir: Path, two_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    adapters = adapter_set(decoder_of(tiny_llama_dir))
    listed = [
        AdapterSpec(name="missing", path=str(tmp_path / "nowhere")),
        AdapterSpec(name="a", path=str(two_adapters[0])),
    ]
    missing, found = load_listed(Host(adapters), listed)
    assert missing.error is not None
    assert "adapter_config.json cannot be read" in missing.error
    assert found == AdapterInfo(name="a")
    assert adapters.names == ["a"]
