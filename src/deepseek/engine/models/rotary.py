"""Rotary position embeddings (arXiv:2104.09864) and how configs stretch them over longer contexts.

A rope type that is not here has angles that change with the length of each request (`dynamic`,
`longrope`): no single table can hold them.
"""

import math
from typing import Annotated

import msgspec
import torch

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Length = Annotated[int, msgspec.Meta(gt=0)]


class Rope(msgspec.Struct, frozen=True, kw_only=True, tag_field="rope_type", tag="default"):
    """Angles as they were trained."""

    rope_theta: _Positive

    def frequencies(self, dim: int) -> tuple[torch.Tensor, float]:
        """Return the float32 angles per position of `dim / 2` pairs, and a factor on both axes."""
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        return 1.0 / self.rope_theta**exponents, 1.0


class LinearRope(Rope, frozen=True, kw_only=True, tag="linear"):
    """All positions moved closer together."""

    factor: _Positive

    def frequencies(self, dim: int) -> tuple[torch.Tensor, float]:
        trained, scale = super().frequencies(dim)
        return trained / self.factor, scale


class Llama3Rope(Rope, frozen=True, kw_only=True, tag="llama3"):
    """Slow pairs stretched, fast ones left alone, a smooth passage between (arXiv:2407.21783)."""

    factor: _Positive
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: _Length

    def frequencies(self, dim: int) -> tuple[torch.Tensor, float]:
        trained, scale = super().frequencies(dim)
        turns = self.original_max_position_embeddings * trained / (2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        kept = ((turns - self.low_freq_factor) / width).clamp(0, 1)
        return (1 - kept) * trained / self.factor + kept * trained, scale


class YarnRope(Rope, frozen=True, kw_only=True, tag="yarn"):
    """YaRN (arXiv:2309.00071): as above along a ramp over pairs, and attention made sharper."""

    max_position_embeddings: _Length
    original_max_position_embeddings: _Length
    factor: _Positive | None = None
    """None: by what the context has grown."""
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def frequencies(self, dim: int) -> tuple[torch.Tensor, float]:
        trained, _ = super().frequencies(dim)
        first = self._pair_that_turns(self.beta_fast or 32, dim)
        last = self._pair_that_turns(self.beta_slow or 1, dim)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dim - 1)
        width = last - first or 0.001
        ramp = (torch.arange(dim // 2, dtype=torch.float32) - first) / width
        stretched = ramp.clamp(0, 1)
        return trained / self._growth * stretched + trained * (1 - stretched), self._axis_factor()

    def temperature(self, mscale: float) -> float:
        """Return what `mscale` makes of the context's growth; 1 where it does not grow."""
        return 1.0 if self._growth <= 1 else 0.1 * mscale * math.log(self._growth) + 1.0

    @property
    def _growth(self) -> float:
        if self.factor is not None:
            return self.factor
        return self.max_position_embeddings / self.original_max_position_embeddings

    def _axis_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)
        return self.temperature(1.0)

    def _pair_that_turns(self, num_turns: float, dim: int) -> float:
        """Return the pair, in fractions, that turns so often over the trained context."""
        wavelength = self.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(self.rope_theta))


AnyRope = Rope | LinearRope | Llama3Rope | YarnRope
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def rotary_table(rope: Rope, *, dim: int, max_positions: int, device: str) -> torch.Tensor:
    """Return float32 (positions, dim): cosines of dim / 2 angles, then their sines."""
    frequencies, scale = rope.frequencies(dim)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * scale).to(device)
