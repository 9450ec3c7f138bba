"""The multi-token prediction head of DeepSeek-V3, against transformers' own."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from deepseek.core.errors import CorruptWeights
from deepseek.engine.models.deepseek_v3 import DeepseekV3Decoder
from deepseek.engine.models.mtp import MTPDrafter
from deepseek.engine.models.registry import load_decoder, load_drafter
from deepseek.engine.ops.reference import ReferenceOps
from tests.engine.models.paged import PagedState, Sequence
from tests.tiny_models import add_mtp_head

NUM_TOKENS = 60


def load(path: Path) -> tuple[DeepseekV3Decoder, MTPDrafter | None]:
    ops = ReferenceOps()
    target = load_decoder(path, dtype=torch.float32, device="cpu", ops=ops)
    assert isinstance(target, DeepseekV3Decoder)
    drafter = load_drafter(path, target=target, dtype=torch.float32, device="cpu", ops=ops)
    return target, drafter


@dataclass(frozen=True)
class Drafting:
    """A target, its drafter, and the drafts that transformers makes along `tokens`."""

    path: Path
    target: DeepseekV3Decoder
    drafter: MTPDrafter
    tokens: list[int]
    expected: torch.Tensor
    """(NUM_TOKENS - 1, vocab): row i predicts token i + 2 from the tokens up to i + 1."""

    def new_state(self) -> PagedState:
        """Return state for both; the drafter's is the last layer."""
        num_layers = self.target.kv_shape.num_layers + self.drafter.kv_shape.num_layers
        return PagedState(replace(self.target.kv_shape, num_layers=num_layers))

    def step(self, state: PagedState, sequence: Sequence, size: int) -> torch.Tensor:
        """Run `size` tokens through both; return their drafts, the next token being known."""
        first = sequence.stored
        following = torch.tensor(sequence.tokens[first + 1 : first + size + 1])
        batch = state.batch([(sequence, size)])
        *layers, own = state.layers
        with torch.inference_mode():
            states = self.target.states(batch, layers)
            return self.drafter.forward(states, following, batch, own, rows=None)


@pytest.fixture(scope="module")
def tiny_drafting(tiny_deepseek_v3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Drafting:
    path = tmp_path_factory.mktemp("mtp") / "model"
    shutil.copytree(tiny_deepseek_v3_dir, path)
    head = add_mtp_head(path)
    target, drafter = load(path)
    assert drafter is not None
    torch.manual_seed(5)
    tokens = torch.randint(512, (NUM_TOKENS,)).tolist()
    return Drafting(path, target, drafter, tokens, transformers_drafts(path, head, tokens))


def transformers_drafts(path: Path, head: MtpModel, tokens: list[int]) -> torch.Tensor:
    model = DeepseekV3ForCausalLM.from_pretrained(path)
    head.tie_with_main_model(model)
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        states = model.model(ids[:, :-1]).last_hidden_state
        drafted = head.forward_layer(
            0, states, torch.arange(1, len(tokens))[None], None, input_ids=ids[:, 1:]
        )
        return model.lm_head(drafted)[0]


@pytest.mark.parametrize("size", [NUM_TOKENS - 1, 7, 1])
def test_drafts_equal_transformers_however_steps_are_cut(
    tiny_drafting: Drafting, size: int
) -> None:
    state, sequence = tiny_drafting.new_state(), Sequence(tiny_drafting.tokens)
    drafts = []
    while sequence.num_pending > 1:
        drafts.append(tiny_drafting.step(state, sequence, min(size, sequence.num_pending - 1)))
    torch.testing.assert_close(torch.cat(drafts), tiny_drafting.expected, atol=2e-4, rtol=2e-4)


def test_rejected_tokens_leave_no_trace(tiny_drafting: Drafting) -> None:
    state, sequence = tiny_drafting.new_state(), Sequence(tiny_drafting.tokens[:21])
    tiny_drafting.step(state, sequence, 20)
    sequence.tokens += [3, 4, 5]  # a draft that turns out wrong
    tiny_drafting.step(state, sequence, 3)
    sequence.stored, sequence.tokens = 20, list(tiny_drafting.tokens)
    drafts = tiny_drafting.step(state, sequence, 5)
    torch.testing.assert_close(drafts, tiny_drafting.expected[20:25], atol=2e-4, rtol=2e-4)


def test_due_rows_are_the_same_rows(tiny_drafting: Drafting) -> None:
    state, sequence = tiny_drafting.new_state(), Sequence(tiny_drafting.tokens)
    following = torch.tensor(tiny_drafting.tokens[1:11])
    batch = state.batch([(sequence, 10)])
    *layers, own = state.layers
    rows = torch.tensor([9, 2])
    with torch.inference_mode():
        states = tiny_drafting.target.states(batch, layers)
        drafts = tiny_drafting.drafter.forward(states, following, batch, own, rows=rows)
    torch.testing.assert_close(drafts, tiny_drafting.expected[rows], atol=2e-4, rtol=2e-4)


def test_the_head_changes_nothing_in_the_target(
    tiny_drafting: Drafting, tiny_deepseek_v3_dir: Path
) -> None:
    plain, drafter = load(tiny_deepseek_v3_dir)
    assert drafter is None
    logits = []
    for target in (plain, tiny_drafting.target):
        state = PagedState(target.kv_shape)
        batch = state.batch([(Sequence(tiny_drafting.tokens), NUM_TOKENS)])
        logits.append(target.forward(batch, state.layers, rows=None))
    assert torch.equal(*logits)


def test_other_families_have_no_head(tiny_deepseek_v2_dir: Path) -> None:
    _, drafter = load(tiny_deepseek_v2_dir)
    assert drafter is None


@pytest.mark.parametrize(
    "name", ["enorm.weight", "self_attn.kv_b_proj.weight", "mlp.experts.7.up_proj.weight"]
)
def test_a_head_with_a_part_missing_is_named(
    tiny_drafting: Drafting, tmp_path: Path, name: str
) -> None:
    path = Path(shutil.copytree(tiny_drafting.path, tmp_path / "m"))
    tensors = load_file(path / "model.safetensors")
    del tensors[f"model.layers.2.{name}"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CorruptWeights, match=name):
        load(path)
