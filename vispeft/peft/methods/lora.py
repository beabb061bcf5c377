"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): `W + scale * B A` with A and B of low rank.

Also from other starts than zero, as PiSSA, MiLoRA, SoMA and OLoRA have them: see `changed_start.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, WeightDelta, one_of
from vispeft.peft.methods.changed_start import STARTS, ConvStartedLoRA, LinearStartedLoRA, WeightStartedLoRA
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.convolution import Conv
from vispeft.peft.methods.lora_other import EmbeddingLoRA, TransposedConvLoRA
from vispeft.peft.methods.low_rank import ConvFactors, LinearFactors, LowRank, WeightFactors, add_product, unserved
from vispeft.peft.quantization.kinds import frozen_weight


@dataclass(frozen=True)
class LoRA(LowRank):
    """`y + alpha / rank * B(A x)`; B starts at zero. With another start, `y + alpha / rank * (B A - B0 A0) x`.

    rank: columns of B and rows of A, per part
    alpha: numerator of the scale; the rank where it is not given
    parts: of a fused query-key-value projection, those to adapt ("q", "v", "qv", ...), each with factors of its own;
    empty is one pair of factors for the whole map
    dropout: on x before A, in training; for module sites only
    scaling: divisor of alpha, `rank` or `sqrt_rank` (rsLoRA)
    start: of A and B: `zero` (B is zero), `pissa` (largest singular values of W), `milora` (smallest ones) or
    `orthogonal` (QR decomposition of W, OLoRA)
    """

    name: ClassVar[str] = "lora"
    lora_plus_tensors: ClassVar[tuple[str, ...]] = ("b",)
    start: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("start", self.start, ("zero", *STARTS))

    def for_linear(self, module: nn.Linear, context: Context) -> Delta:
        """Return the delta for a linear map."""
        weight, inputs = frozen_weight(module), context.tables.recomputed_inputs
        if self.start == "zero":
            return LinearLoRA(self, weight, inputs)
        return LinearStartedLoRA(self, self.start, weight, inputs)

    def for_conv(self, module: Conv, context: Context) -> Delta:
        """Return the delta for a convolution."""
        return ConvolutionLoRA(self, module) if self.start == "zero" else ConvStartedLoRA(self, self.start, module)

    def for_other(self, module: nn.Module) -> Delta:
        """Return the delta for a transposed convolution or an embedding, which start at zero alone."""
        served: dict[type[nn.Module], type[TransposedConvLoRA | EmbeddingLoRA]] = {
            **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedConvLoRA),
            nn.Embedding: EmbeddingLoRA,
        }
        kind = served.get(type(module))
        if kind is None:
            raise unserved(self.name, module, "linear maps, convolutions, transposed ones, embeddings")
        if self.start != "zero":
            raise PlanError(f"`start` must be zero on a {type(module).__name__}, but is {self.start!r}.")
        return kind(self, module)

    def for_weight(self, weight: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        return WeightLoRA(self, weight) if self.start == "zero" else WeightStartedLoRA(self, self.start, weight)


class LinearLoRA(LinearFactors):
    """Low-rank update of a linear map."""

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update on the rows of its parts. x: [..., in]; y: [..., out]."""
        return self.update(x, y, base, self.a, self.b)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B A`, and the bias as it is."""
        return add_product(weight, self.a, self.b, self.scale, self.rows), bias


class ConvolutionLoRA(ConvFactors):
    """Low-rank update of a convolution."""

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update. x: [B, in, *size]; y: [B, out, *size]."""
        return self.update(x, y, self.a, self.b)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B A` over flattened kernels, and the bias as it is."""
        return add_product(weight, self.a, self.b, self.scale, self.rows), bias


class WeightLoRA(WeightFactors):
    """Low-rank update of a parameter."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + scale * B A` on the rows of its parts."""
        return add_product(weight, self.a, self.b, self.scale, self.rows)
