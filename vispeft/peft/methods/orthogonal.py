"""Rotations of what a weight sees of its input, one for all of its rows: OFT and BOFT.

OFT (Qiu et al. 2023, https://arxiv.org/abs/2306.07280, section 3): `z = (R W0)^T x`, with the neurons as columns of W0.
With the neurons as rows, as torch has them, this is `W R^T x`: every row is turned by the same R, so the angles between
rows stay. R is orthogonal and block-diagonal, by the Cayley transform `R = (I + Q)(I - Q)^-1` of a skew-symmetric Q.
BOFT (Liu et al. 2024, https://arxiv.org/abs/2311.06243, section 4): R is a product of such factors, between which
butterfly permutations mix the blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, full_precision, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.convolution import Conv, ConvGeometry, check_plain_conv
from vispeft.peft.quantization.kinds import frozen_weight


@dataclass(frozen=True)
class Rotating(Method):
    """A method that turns the rows of linear maps, convolutions (flattened kernels) and parameters."""

    @abstractmethod
    def rotations(self, weight: Tensor) -> Rotations:
        """Return the rotation for a weight [out, in, ...]."""

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map or a convolution."""
        match module:
            case nn.Linear():
                return LinearRotation(self, module, self.rotations(frozen_weight(module)))
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                check_plain_conv(self.name, module)
                return ConvRotation(self, module, self.rotations(frozen_weight(module)))
            case _:
                raise PlanError(
                    f"`{self.name}` serves linear maps, convolutions and parameters, but this is a "
                    f"{type(module).__name__}."
                )

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a parameter [out, in, ...]."""
        if parameter.ndim < 2:
            raise PlanError(f"`{self.name}` serves parameters [out, in, ...], but this one is {list(parameter.shape)}.")
        return WeightRotation(self, self.rotations(parameter))


@dataclass(frozen=True)
class OFT(Rotating):
    """`W R^T x + bias` with R block-diagonal and orthogonal, by the Cayley transform of a trained Q, zero at the start.

    block: size of the blocks; it divides the inputs of the site, of a convolution `in / groups * kh * kw`
    """

    name: ClassVar[str] = "oft"
    block: int

    def __post_init__(self) -> None:
        at_least("block", self.block, 2)

    def rotations(self, weight: Tensor) -> Rotations:
        """Return the rotation for a weight [out, in, ...]."""
        return Rotations(weight, self.block, 1)


@dataclass(frozen=True)
class BOFT(Rotating):
    """`W R^T x + bias` with R a product of block-diagonal rotations in butterfly order, each from zero angles.

    block: size of the blocks, an even number; `block * 2 ** (factors - 1)` divides the inputs of the site
    factors: number of factors; `log2(in / block) + 1` of them connect every input with every other
    """

    name: ClassVar[str] = "boft"
    block: int
    factors: int = 2

    def __post_init__(self) -> None:
        at_least("block", self.block, 2)
        at_least("factors", self.factors, 1)
        if self.block % 2:
            raise PlanError(f"`block` must be even, since a butterfly joins halves of blocks, but is {self.block}.")

    def rotations(self, weight: Tensor) -> Rotations:
        """Return the rotation for a weight [out, in, ...]."""
        return Rotations(weight, self.block, self.factors)


class Rotations(nn.Module):
    """Rotation R of rows: `q` [factors * blocks, block (block - 1) / 2], the upper triangles of skew-symmetric blocks.

    The blocks of factor `i`, from 0, join halves of blocks that are `2 ** i` halves apart; those of the first factor
    are neighbours, as in OFT.
    """

    def __init__(self, weight: Tensor, block: int, factors: int) -> None:
        super().__init__()
        features, span = weight[0].numel(), block * 2 ** (factors - 1)
        if features % span:
            what = "`block`" if factors == 1 else "`block * 2 ** (factors - 1)`"
            raise PlanError(f"{what} must divide the site's {features} inputs, but is {span}.")
        self.q = trainable(factors * features // block, block * (block - 1) // 2, like=weight)
        self.size, self.num_factors = block, factors

    def change(self, values: Tensor, *, is_back: bool = False) -> Tensor:
        """Return `(R - I) v` for each row v of values [..., in], or `(R^T - I) v` backwards, in their dtype."""
        steps = list(enumerate(self._changes().to(values.dtype).chunk(self.num_factors)))
        total = torch.zeros_like(values)
        for level, blocks in reversed(steps) if is_back else steps:
            turned = self._turned(values + total, blocks.mT if is_back else blocks, level)
            total = total + turned
        return total

    def _turned(self, values: Tensor, blocks: Tensor, level: int) -> Tensor:
        """Return the product of one factor, less the identity, with values [..., in]. blocks: [blocks, block, block]"""
        if level == 0:
            rows = values.reshape(*values.shape[:-1], values.shape[-1] // self.size, self.size)
            return torch.einsum("bij,...bj->...bi", blocks, rows).flatten(-2)
        # [..., group, which half, place in the group, feature], so that a block is two halves 2 ** level apart
        num_groups = values.shape[-1] // (self.size * 2**level)
        halves = values.reshape(*values.shape[:-1], num_groups, 2, 2**level, self.size // 2)
        rows = halves.transpose(-3, -2).flatten(-2).flatten(-3, -2)
        turned = torch.einsum("bij,...bj->...bi", blocks, rows)
        apart = turned.reshape(*values.shape[:-1], num_groups, 2**level, 2, self.size // 2).transpose(-3, -2)
        return apart.flatten(-4)

    def _changes(self) -> Tensor:
        """Return R - I of every block [factors * blocks, block, block], in float32 at least, which solvers need."""
        with full_precision(self.q):
            q = self.q if self.q.dtype == torch.float64 else self.q.float()
            identity = torch.eye(self.size, dtype=q.dtype, device=q.device)
            rows, columns = torch.triu_indices(self.size, self.size, 1, device=q.device)
            upper = q.new_zeros(len(q), self.size, self.size)
            upper[:, rows, columns] = q
            skew = upper - upper.mT
            # (I - Q)^-1 and I + Q commute
            rotation: Tensor = torch.linalg.solve(identity - skew, identity + skew)
            return rotation - identity


class LinearRotation(Delta):
    """Rotation before a linear map, as an update of its output: `W (R^T - I) x`."""

    def __init__(self, method: Method, base: nn.Linear, rotations: Rotations) -> None:
        super().__init__(method)
        self.rotations = rotations
        # in a tuple, so that it is no child of its own child
        self.bases = (base,)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return `y + W (R^T - I) x`. x: [..., in]; y: [..., out]."""
        change = self.rotations.change(x.to(y.dtype), is_back=True)
        return y + F.linear(change, frozen_weight(self.bases[0]).to(y.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight with the frozen one turned, `W R^T`, and the bias as it is."""
        return _turned(weight, frozen_weight(self.bases[0]), self.rotations), bias


class ConvRotation(Delta):
    """Rotation of the flattened kernels of a convolution."""

    def __init__(self, method: Method, base: Conv, rotations: Rotations) -> None:
        super().__init__(method)
        self.rotations, self.geometry = rotations, ConvGeometry(base)
        self.bases = (base,)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the change of the kernels applied to x. x: [B, in, *size]; y: [B, out, *size]."""
        weight = frozen_weight(self.bases[0])
        change = self.rotations.change(weight.flatten(1).to(self.rotations.q.dtype)).view(weight.shape)
        return y + self.geometry.convolve(x.to(y.dtype), change.to(y.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight with the frozen kernels turned, `W R^T`, and the bias as it is."""
        return _turned(weight, frozen_weight(self.bases[0]), self.rotations), bias


class WeightRotation(WeightDelta):
    """Rotation of the rows of a parameter."""

    def __init__(self, method: Method, rotations: Rotations) -> None:
        super().__init__(method)
        self.rotations = rotations

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W R^T`."""
        return _turned(weight, weight, self.rotations)


def _turned(weight: Tensor, frozen: Tensor, rotations: Rotations) -> Tensor:
    """Return a weight plus the change `W0 (R^T - I)` of the frozen one, computed in R's precision, in its own dtype."""
    change = rotations.change(frozen.flatten(1).to(rotations.q.dtype)).view(weight.shape)
    return (weight.to(change.dtype) + change).to(weight.dtype)
