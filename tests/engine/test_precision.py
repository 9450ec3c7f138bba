"""A decoder over nested weights: each sequence in its own precision, in any batch."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepseek.core.errors import ConfigurationError, UnsupportedParameter
from deepseek.core.precision import Precision
from deepseek.core.requests import GenerateRequest
from deepseek.engine.linear import Bf16Linear, SwitchingLinear, head_factory, linear_factory
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.nested_linear import NestedProjection
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.weights_memory import weights_bytes
from tests.engine.families import Bold, greedy, make_engine, run_all
from tests.lora import write_adapter
from tests.tiny_models import write_deepseek_v3, write_qwen3_moe

PRECISIONS = (Precision.INT8, Precision.INT4)


@pytest.fixture(scope="module")
def nested_moe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of a width that groups divide."""
    return write_qwen3_moe(tmp_path_factory.mktemp("moe") / "tiny", moe_intermediate_size=64)


@pytest.fixture(scope="module")
def nested_latent_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek-V3 of such widths: latent attention, experts, one of them shared."""
    return write_deepseek_v3(
        tmp_path_factory.mktemp("latent") / "tiny",
        q_lora_rank=32,
        kv_lora_rank=32,
        v_head_dim=16,
        moe_intermediate_size=64,
    )


def mixed_requests() -> list[GenerateRequest]:
    """Every prompt in both precisions, some with a common beginning, some of several chunks."""
    rng = random.Random(3)
    shared = [rng.randrange(500) for _ in range(40)]
    prompts = [
        shared[: rng.randrange(41)] + [rng.randrange(500) for _ in range(rng.randrange(1, 80))]
        for _ in range(6)
    ]
    return [
        greedy(number, prompts[number // 2], rng.randrange(8, 30), precision=PRECISIONS[number % 2])
        for number in range(12)
    ]


def alone(path: Path, request: GenerateRequest) -> list[int]:
    return run_all(make_engine(path, quantization="nested"), [request])[request.id]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "family", ["tiny_llama_dir", "tiny_gpt2_dir", "nested_moe_dir", "nested_latent_dir"]
)
def test_an_answer_is_the_same_alone_and_among_others_of_both_precisions(
    family: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(family)
    requests = mixed_requests()
    answers = run_all(make_engine(path, quantization="nested"), requests)
    for item in requests:
        assert answers[item.id] == alone(path, item), f"request {item.id}, {item.precision}"
    assert any(answers[n][:8] != answers[n + 1][:8] for n in range(0, 12, 2))


def test_guesses_are_verified_in_the_precision_of_their_sequence(tiny_llama_dir: Path) -> None:
    phrase = [5, 6, 7, 8]
    requests = [
        greedy(number, phrase * 10 + phrase[:number], 40, precision=PRECISIONS[number % 2])
        for number in range(4)
    ]
    plain = run_all(make_engine(tiny_llama_dir, quantization="nested"), requests)
    speculation = Bold()
    engine = make_engine(tiny_llama_dir, quantization="nested", speculation=speculation)
    assert run_all(engine, requests) == plain
    assert speculation.num_accepted > 0


def test_attention_state_is_reused_within_a_precision_only(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, quantization="nested")
    prompt = list(range(1, 60))
    hits: list[int] = []
    for number, precision in enumerate([*PRECISIONS, *PRECISIONS]):
        before = engine.load().prefix_hit_tokens
        run_all(engine, [greedy(number, prompt, 4, precision=precision)])
        hits.append(engine.load().prefix_hit_tokens - before)
    assert hits == [0, 0, 48, 48]  # full blocks of 16


@pytest.mark.slow
@pytest.mark.timeout(120)  # it waits for PEFT's import
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21
def test_an_adapter_acts_in_either_precision(tiny_llama_dir: Path, tmp_path: Path) -> None:
    engine = make_engine(tiny_llama_dir, quantization="nested")
    engine.prepare_adapter("a", write_adapter(tiny_llama_dir, tmp_path / "a", seed=1))()
    prompt = list(range(1, 40))
    requests = [
        replace(greedy(number, prompt, 12, precision=PRECISIONS[number % 2]), adapter=adapter)
        for number, adapter in enumerate([None, None, "a", "a"])
    ]
    together = run_all(engine, requests)
    assert len({tuple(answer) for answer in together.values()}) == 4
    for request in requests:
        assert run_all(engine, [request])[request.id] == together[request.id]


def test_who_names_no_precision_gets_the_best(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, quantization="nested")
    prompt = list(range(1, 60))
    run_all(engine, [greedy(1, prompt, 4)])
    run_all(engine, [greedy(2, prompt, 4, precision=Precision.INT8)])
    assert engine.load().prefix_hit_tokens == 48


@pytest.mark.parametrize(
    ("quantization", "precision", "words"),
    [
        (None, Precision.INT8, "leaves no choice"),
        ("int8", Precision.INT8, "leaves no choice"),
        ("nested", Precision.FP16, "has int8 and int4"),
    ],
)
def test_a_precision_that_the_model_does_not_have_is_refused(
    tiny_llama_dir: Path, quantization: str | None, precision: Precision, words: str
) -> None:
    engine = make_engine(tiny_llama_dir, quantization=quantization)
    with pytest.raises(UnsupportedParameter, match=words) as caught:
        engine.add(greedy(1, [1, 2, 3], 4, precision=precision))
    assert caught.value.param == "precision"
    assert not engine.has_work


def test_the_head_stays_in_sixteen_bits(tiny_llama_dir: Path) -> None:
    def loaded(quantization: str | None) -> object:
        return load_decoder(
            tiny_llama_dir,
            dtype=torch.bfloat16,
            device="cpu",
            ops=make_ops("cpu"),
            linear_factory=linear_factory(quantization, device="cpu"),
            head_factory=head_factory(quantization, device="cpu"),
        )

    nested, stored = loaded("nested"), loaded(None)
    assert type(nested._head) is type(stored._head)  # type: ignore[attr-defined]
    layers = [projection._linear for projection in nested.projections]  # type: ignore[attr-defined]
    assert all(isinstance(layer, SwitchingLinear) for layer in layers)
    assert weights_bytes(*layers) < 0.62 * weights_bytes(
        *(projection._linear for projection in stored.projections)  # type: ignore[attr-defined]
    )
    assert not isinstance(nested._head, NestedProjection)  # type: ignore[attr-defined]
    assert not issubclass(Bf16Linear, SwitchingLinear)


def test_layers_of_other_devices_and_widths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'nested' runs on CPUs"):
        linear_factory("nested", device="cuda")
    with pytest.raises(ConfigurationError, match="48 inputs") as caught:
        linear_factory("nested", device="cpu")(torch.ones(16, 48))
    assert caught.value.param == "quantization"
