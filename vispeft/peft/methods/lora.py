"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): `W + scale * B A` with A and B of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from vispeft.peft.methods.base import Delta, WeightDelta
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.low_rank import ConvFactors, LinearFactors, LowRank, WeightFactors, add_product
from vispeft.peft.quantization.kinds import frozen_weight


@dataclass(frozen=True)
class LoRA(LowRank):
    """`y + alpha / rank * B(A x)`; B starts at zero.

    rank: columns of B and rows of A, per part
    alpha: numerator of the scale; the rank where it is not given
    parts: of a fused query-key-value projection, those to adapt ("q", "v", "qv", ...), each with factors of its own;
    empty is one pair of factors for the whole map
    dropout: on x before A, in training; for module sites only
    """

    name: ClassVar[str] = "lora"

    def for_linear(self, module: nn.Linear, context: Context) -> Delta:
        """Return the delta for a linear map."""
        return LinearLoRA(self, frozen_weight(module), context.tables.recomputed_inputs)

    def for_conv(self, module: nn.Conv2d, context: Context) -> Delta:
        """Return the delta for a convolution."""
        return ConvLoRA(self, module)

    def for_weight(self, weight: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        return WeightLoRA(self, weight)


class LinearLoRA(LinearFactors):
    """Low-rank update of a linear map."""

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update on the rows of its parts. x: [..., in]; y: [..., out]."""
        return self.update(x, y, base, self.a)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B A`, and the bias as it is."""
        return add_product(weight, self.a, self.b, self.scale, self.rows), bias


class ConvLoRA(ConvFactors):
    """Low-rank update of a convolution."""

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update. x: [B, in, H, W]; y: [B, out, h, w]."""
        return self.update(x, y, self.a)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B A` over flattened kernels, and the bias as it is."""
        return add_product(weight, self.a, self.b, self.scale, self.rows), bias


class WeightLoRA(WeightFactors):
    """Low-rank update of a parameter."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + scale * B A` on the rows of its parts."""
        return add_product(weight, self.a, self.b, self.scale, self.rows)
