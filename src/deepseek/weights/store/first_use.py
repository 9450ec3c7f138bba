"""The order in which a model's tensors are first used, told from their names.

Embeddings, then layers by number (inside one: the norm before attention, attention, the norm
before the feed-forward part, the feed-forward part; a part's output projection last), then what
follows the layers, then the head. A name that no rule knows comes after those of its group that one
does. The order only decides what lies next to what and what is read first; a wrong guess costs
time, never an answer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed\w*|\w*_embeddings?|embeddings|wte|wpe)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|score|classifier|pooler|cls|head)(?:\.|$)")
_INSIDE = (
    (0, re.compile(r"input_layernorm|\bln_1\b")),
    (2, re.compile(r"post_attention|\bln_2\b")),
    (1, re.compile(r"attn|attention")),
    (3, re.compile(r"mlp|moe|expert|intermediate|ffn|feed_forward")),
)
"""Place in a layer; the first that matches counts: BERT's `attention.output` is attention."""
_OUTPUT = re.compile(r"\b(?:o_proj|down_proj|c_proj|out_proj|output|w2)\b")
_NUMBER = re.compile(r"(\d+)")

Group = tuple[int, int]
"""What is used together: (0, 0) embeddings, (1, n) layer n, (2, 0) what follows, (3, 0) head."""


@dataclass(frozen=True, slots=True, order=True)
class FirstUse:
    """Where a tensor stands; sorts as tensors are used."""

    group: Group
    place: int
    is_output: bool
    spelling: tuple[str | int, ...]


def first_use(name: str) -> FirstUse:
    """Return where the tensor of this name stands."""
    layer = _LAYER.search(name)
    inside = name[layer.end() :] if layer else ""
    return FirstUse(
        group=_group(name, layer),
        place=next((place for place, rule in _INSIDE if rule.search(inside)), len(_INSIDE)),
        is_output=_OUTPUT.search(inside) is not None,
        spelling=tuple(int(s) if s.isdigit() else s for s in _NUMBER.split(name)),
    )


def in_first_use_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted as a forward pass meets them."""
    return sorted(names, key=first_use)


def _group(name: str, layer: re.Match[str] | None) -> Group:
    if layer:
        return 1, int(layer[1])
    if _HEAD.search(name):
        return 3, 0
    return (0, 0) if _EMBEDDING.search(name) else (2, 0)
