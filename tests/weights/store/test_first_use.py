"""Names of the families that the engine runs, in the order of a forward pass."""

import random

import pytest

from deepseek.weights.store.first_use import in_first_use_order

LLAMA = [
    "model.embed_tokens.weight",
    "model.layers.2.input_layernorm.weight",
    "model.layers.2.self_attn.k_proj.weight",
    "model.layers.2.self_attn.q_proj.weight",
    "model.layers.2.self_attn.v_proj.weight",
    "model.layers.2.self_attn.o_proj.weight",
    "model.layers.2.post_attention_layernorm.weight",
    "model.layers.2.mlp.gate_proj.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.10.input_layernorm.weight",
    "model.layers.10.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]
GPT2 = [
    "transformer.wpe.weight",
    "transformer.wte.weight",
    "transformer.h.0.ln_1.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.attn.c_proj.weight",
    "transformer.h.0.ln_2.weight",
    "transformer.h.0.mlp.c_fc.weight",
    "transformer.h.0.mlp.c_proj.weight",
    "transformer.h.1.ln_1.weight",
    "transformer.ln_f.weight",
]
BERT = [
    "bert.embeddings.LayerNorm.weight",
    "bert.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.0.attention.output.dense.weight",
    "bert.encoder.layer.0.intermediate.dense.weight",
    "bert.encoder.layer.0.output.dense.weight",
    "bert.encoder.layer.1.attention.self.query.weight",
    "bert.pooler.dense.weight",
    "classifier.weight",
]
EXPERTS = [
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.3.mlp.experts.2.gate_proj.weight",
    "model.layers.3.mlp.experts.10.gate_proj.weight",
    "model.layers.3.mlp.experts.2.down_proj.weight",
    "model.layers.3.mlp.experts.10.down_proj.weight",
]


@pytest.mark.parametrize("names", [LLAMA, GPT2, BERT, EXPERTS], ids=lambda names: names[0])
def test_names_are_sorted_as_a_forward_pass_meets_them(names: list[str]) -> None:
    shuffled = random.Random(5).sample(names, len(names))
    assert in_first_use_order(shuffled) == names


def test_names_that_no_rule_knows_have_a_place_too() -> None:
    names = ["", "x.1", "x.10", "x.9", "model.layers.0.unheard_of", "lm_head.weight"]
    ordered = in_first_use_order(reversed(names))
    assert ordered == ["model.layers.0.unheard_of", "", "x.1", "x.9", "x.10", "lm_head.weight"]
