"""DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353): `m * V / ||V||` by row, with `V = W + scale * B A`.

The magnitude m is `||W||` plus what is learnt, from zeros: so the scale `m / ||V||` is one to the bit at the start, on
any device. As in section 4.3 of the paper, `||V||` is a constant in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from vispeft_kernels.lora import lora_add, lora_update, scaled

from vispeft.peft.methods.base import Delta, WeightDelta, full_precision, trainable
from vispeft.peft.methods.base_modules import is_plain_linear
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.convolution import Conv
from vispeft.peft.methods.low_rank import ConvFactors, LinearFactors, LowRank, WeightFactors, add_product, unserved
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs
from vispeft.peft.quantization.kinds import frozen_weight


@dataclass(frozen=True)
class DoRA(LowRank):
    """`c + g * (y - c + alpha / rank * B(A x))`, with the bias c and the scales `g = m / ||W + alpha / rank * B A||`.

    B starts at zero and m, one number per row, at `||W||`. The options are those of LoRA.
    """

    name: ClassVar[str] = "dora"
    lora_plus_tensors: ClassVar[tuple[str, ...]] = ("b",)

    def for_linear(self, module: nn.Linear, context: Context) -> Delta:
        """Return the delta for a linear map."""
        return LinearDoRA(self, module, context.tables.recomputed_inputs)

    def for_conv(self, module: Conv, context: Context) -> Delta:
        """Return the delta for a convolution."""
        return ConvDoRA(self, module)

    def for_other(self, module: nn.Module) -> Delta:
        """Refuse a module of another kind."""
        raise unserved(self.name, module, "linear maps, convolutions")

    def for_weight(self, weight: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        return WeightDoRA(self, weight)


class LinearDoRA(LinearFactors):
    """Factors of a linear map as in LoRA, and `m` [parts * out of a part]: the change of the magnitudes."""

    def __init__(self, method: DoRA, base: nn.Linear, recomputed_inputs: RecomputedInputs) -> None:
        super().__init__(method, frozen_weight(base), recomputed_inputs)
        self.m = trainable(self.b.shape[0], like=self.b)
        # in a tuple, so that it is no child of its own child
        self.bases = (base,)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update and the scales on the rows of its parts. x: [..., in]; y: [..., out]."""
        (frozen,) = self.bases
        scale = feature_scales(frozen_weight(frozen), self.a, self.b, self.m, self.scale, self.rows)
        offsets, dropout = self.column_offsets, self.active_dropout
        if base is None or not is_plain_linear(base):
            updated = lora_add(y, x, self.a, self.b, self.scale, column_offsets=offsets, dropout=dropout)
            return scaled(updated, scale, frozen.bias)
        return lora_update(
            y,
            x,
            frozen.weight,
            frozen.bias,
            self.a,
            self.b,
            self.scale,
            column_offsets=offsets,
            dropout=dropout,
            recompute=self.recomputed_inputs.recompute_of(x),
            feature_scale=scale,
        )

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `g (W + scale * B A)`, and the bias as it is."""
        return _merged(self, self.bases[0], weight, bias)


class ConvDoRA(ConvFactors):
    """Factors of a convolution as in LoRA, and `m` [out]: the change of the magnitudes."""

    def __init__(self, method: DoRA, base: Conv) -> None:
        super().__init__(method, base)
        self.m = trainable(base.out_channels, like=self.b)
        self.bases = (base,)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update and the scales. y: [B, out, *size].

        Autograd keeps one tensor of y's size for the scales.
        """
        (frozen,) = self.bases
        scale = feature_scales(frozen_weight(frozen), self.a, self.b, self.m, self.scale, self.rows)
        return scaled(self.update(x, y, self.a, self.b), scale, frozen.bias, dim=1)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `g (W + scale * B A)` over flattened kernels, and the bias as it is."""
        return _merged(self, self.bases[0], weight, bias)


class WeightDoRA(WeightFactors):
    """Factors of a parameter as in LoRA, and `m` [parts * rows of a part]: the change of the magnitudes."""

    def __init__(self, method: DoRA, weight: Tensor) -> None:
        super().__init__(method, weight)
        self.m = trainable(self.b.shape[0], like=weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `g (W + scale * B A)` on the rows of its parts."""
        scale = feature_scales(weight, self.a, self.b, self.m, self.scale, self.rows)
        return scaled(add_product(weight, self.a, self.b, self.scale, self.rows), scale, None, dim=0)


def feature_scales(weight: Tensor, a: Tensor, b: Tensor, m: Tensor, scale: float, rows: list[slice]) -> Tensor:
    """Return `(||W|| + m) / ||W + scale * B A||` for each row of W [out, ...], in m's precision.

    It is one for rows of no part. Differentiable in m alone. A row of zeros has no direction that could be kept: there
    the scale is `1 + m`.
    """
    parts = len(rows)
    pieces, end = [], 0
    for part, a_part, b_part, m_part in zip(rows, a.chunk(parts), b.chunk(parts), m.chunk(parts), strict=True):
        start, slope = _line(weight[part].flatten(1), a_part.flatten(1), b_part.flatten(1), scale)
        pieces += [m.new_ones(part.start - end), torch.addcmul(start, slope, m_part)]
        end = part.stop
    return torch.cat([*pieces, m.new_ones(weight.shape[0] - end)])


@torch.no_grad()
def _line(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the scale of each row at `m = 0`, and its slope in m. weight: [n, in]; a: [r, in]; b: [n, r].

    By `||V||^2 = ||W||^2 + s B . (2 W A^T + s B A A^T)`, so no tensor of W's size is made.
    """
    with full_precision(weight):
        length = torch.linalg.vector_norm(weight, dim=1, dtype=a.dtype)
        cross = (weight @ a.to(weight.dtype).t()).to(a.dtype)
        change = scale * (b * torch.addmm(cross, b, a @ a.t(), beta=2, alpha=scale)).sum(1)
        square = length.square()
        is_zero = square == 0
        ratio = (1 + change / square).clamp_min(torch.finfo(a.dtype).eps)
        start = ratio.masked_fill(is_zero, 1).sqrt().reciprocal()
        return start, start / length.masked_fill(is_zero, 1)


def _merged(
    delta: LinearDoRA | ConvDoRA, base: nn.Linear | Conv, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the module that computes the same.

    The bias changes only where a delta before has changed it.
    """
    feature_scale = feature_scales(frozen_weight(base), delta.a, delta.b, delta.m, delta.scale, delta.rows)
    merged = add_product(weight, delta.a, delta.b, delta.scale, delta.rows)
    return scaled(merged, feature_scale, None, dim=0), None if bias is None else scaled(bias, feature_scale, base.bias)
