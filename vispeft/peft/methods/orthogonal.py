"""OFT (Qiu et al. 2023, https://arxiv.org/abs/2306.07280): rotations of the rows of a weight, in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import (
    Delta,
    Method,
    WeightDelta,
    at_least,
    full_precision,
    reference_tensor,
    trainable,
    widths,
)
from vispeft.peft.methods.context import Context


@dataclass(frozen=True)
class OFT(Method):
    """`R W x + bias` with R block-diagonal and orthogonal, by the Cayley transform of a trained Q, zero at the start.

    Angles between the rows of W stay as they are. `R = (I + Q)(I - Q)^-1` with a skew-symmetric Q (section 3.3).

    block: size of the blocks; it divides the features of the output
    """

    name: ClassVar[str] = "oft"
    block: int

    def __post_init__(self) -> None:
        at_least("block", self.block, 2)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map or a convolution."""
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise PlanError(
                f"`oft` serves nn.Linear and nn.Conv2d modules and parameters, but this is a {type(module).__name__}."
            )
        return ModuleOFT(self, module)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a parameter [out, ...]."""
        if parameter.ndim < 2:
            raise PlanError(f"`oft` serves parameters [out, in, ...], but this one is {list(parameter.shape)}.")
        return WeightOFT(self, parameter)


class Rotations(nn.Module):
    """Rotation by blocks: `q` [blocks, block (block - 1) / 2], the upper triangles of the skew-symmetric blocks."""

    def __init__(self, method: OFT, features: int, like: Tensor) -> None:
        super().__init__()
        size = method.block
        if features % size:
            raise PlanError(f"`block` must divide the site's {features} outputs, but is {size}.")
        self.q = trainable(features // size, size * (size - 1) // 2, like=like)
        self.size = size

    def turned(self, values: Tensor) -> Tensor:
        """Return `(R - I) values` for values [..., features], in their dtype."""
        change = self._change()
        blocks = values.view(*values.shape[:-1], change.shape[0], change.shape[1])
        return torch.einsum("bij,...bj->...bi", change.to(values.dtype), blocks).flatten(-2)

    def _change(self) -> Tensor:
        """Return R - I [blocks, block, block], in float32 at least: half precisions have no solver."""
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


class ModuleOFT(Delta):
    """Rotation of the output of a linear map or a convolution, about its bias."""

    def __init__(self, method: OFT, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__(method)
        size = widths(base)
        self.dim = size.dim
        self.rotations = Rotations(method, size.outputs, reference_tensor(base))
        # in a tuple, so that it is no child of its own child
        self.bases = (base,)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return `R (y - bias) + bias`. y: [..., out] or [B, out, H, W]."""
        bias = self.bases[0].bias
        values = y.movedim(self.dim, -1)
        centred = values if bias is None else values - bias.to(y.dtype)
        return y + self.rotations.turned(centred).movedim(-1, self.dim)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `R W`, and the bias turned as far as a delta before has changed it."""
        own = self.bases[0].bias
        if bias is not None:
            changed = bias if own is None else bias - own
            bias = (bias + self.rotations.turned(changed.to(self.rotations.q.dtype))).to(bias.dtype)
        return _rotated(weight, self.rotations), bias


class WeightOFT(WeightDelta):
    """Rotation of the rows of a parameter."""

    def __init__(self, method: OFT, weight: Tensor) -> None:
        super().__init__(method)
        self.rotations = Rotations(method, weight.shape[0], weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `R W`."""
        return _rotated(weight, self.rotations)


def _rotated(weight: Tensor, rotations: Rotations) -> Tensor:
    """Return `R W` for W [out, ...], computed in R's precision and in W's dtype."""
    rows = weight.flatten(1).to(rotations.q.dtype)
    return (rows + rotations.turned(rows.t()).t()).view(weight.shape).to(weight.dtype)
