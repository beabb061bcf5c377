"""Updates of a weight that are products of small matrices, of higher rank than LoRA at equal size: LoHa and LoKr."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vispeft.peft.methods.base import at_least, not_zero, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.weight_update import Update, UpdateMethod


@dataclass(frozen=True)
class LoHa(UpdateMethod):
    """`W + alpha / rank * (B1 A1) * (B2 A2)`, entry by entry, of rank up to `rank ** 2`; B2 starts at zero.

    Hyeon-Woo et al. 2022 (FedPara), https://arxiv.org/abs/2108.06098, proposition 1; as an adapter: Yeh et al. 2024,
    https://arxiv.org/abs/2309.14859.
    rank: columns of each B and rows of each A
    alpha: numerator of the scale; the rank where it is not given
    """

    name: ClassVar[str] = "loha"
    rank: int
    alpha: float | None = None

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        if self.alpha is not None:
            not_zero("alpha", self.alpha)

    def update_of(self, weight: Tensor, context: Context) -> Update:
        """Return the factors for a weight [out, in, ...]."""
        return HadamardFactors(self.rank, _scale(self.alpha, self.rank), weight)


class HadamardFactors(Update):
    """Factors `a1` and `a2` [r, in], `b1` and `b2` [out, r]."""

    def __init__(self, rank: int, scale: float, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        self.scale = scale
        self.a1, self.a2 = trainable(rank, inputs, like=weight), trainable(rank, inputs, like=weight)
        self.b1, self.b2 = trainable(outputs, rank, like=weight), trainable(outputs, rank, like=weight)
        for factor in (self.a1, self.a2, self.b1):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self) -> Tensor:
        """Return `scale * (B1 A1) * (B2 A2)` [out, in]."""
        return self.scale * (self.b1 @ self.a1) * (self.b2 @ self.a2)


@dataclass(frozen=True)
class LoKr(UpdateMethod):
    """`W + alpha / rank * C (x) (B A)`, a Kronecker product; C starts at zero.

    Yeh et al. 2024, https://arxiv.org/abs/2309.14859; Edalati et al. 2022 (KronA), https://arxiv.org/abs/2212.10650.
    rank: columns of B and rows of A
    alpha: numerator of the scale; the rank where it is not given
    factor: rows and columns of C, at most; where it is not given, near the square root of those of W
    """

    name: ClassVar[str] = "lokr"
    rank: int
    alpha: float | None = None
    factor: int | None = None

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        if self.alpha is not None:
            not_zero("alpha", self.alpha)
        if self.factor is not None:
            at_least("factor", self.factor, 1)

    def update_of(self, weight: Tensor, context: Context) -> Update:
        """Return the factors for a weight [out, in, ...]."""
        return KroneckerFactors(self, weight)


class KroneckerFactors(Update):
    """Factors `c` [out1, in1], `a` [r, in2] and `b` [out2, r], with `out1 * out2 = out` and `in1 * in2 = in`.

    Of a convolution, `in` is the size of a flattened kernel, `in * kh * kw`.
    """

    def __init__(self, method: LoKr, weight: Tensor) -> None:
        super().__init__()
        first, rest = kronecker_shapes(weight, method.factor)
        self.scale = _scale(method.alpha, method.rank)
        self.c = trainable(*first, like=weight)
        self.a, self.b = trainable(method.rank, rest[1], like=weight), trainable(rest[0], method.rank, like=weight)
        for factor in (self.a, self.b):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self) -> Tensor:
        """Return `scale * C (x) (B A)` [out, in]."""
        return torch.kron(self.scale * self.c, self.b @ self.a)


def kronecker_shapes(weight: Tensor, factor: int | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (out1, in1) and (out2, in2) for a weight [out, in, ...]. factor: as in `LoKr`"""
    sizes = weight.shape[0], weight[0].numel()
    outputs, inputs = (_divisor(size, factor) for size in sizes)
    return (outputs, inputs), (sizes[0] // outputs, sizes[1] // inputs)


def _divisor(size: int, at_most: int | None) -> int:
    """Return the largest divisor of a size that is not above the bound, or not above the square root without one."""
    bound = math.isqrt(size) if at_most is None else at_most
    return next(divisor for divisor in range(min(bound, size), 0, -1) if size % divisor == 0)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank
