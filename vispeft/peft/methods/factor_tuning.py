"""FacT (Jie and Deng 2023, https://arxiv.org/abs/2212.03145): one tensor of all updates, decomposed.

The weights of a model are a stack of blocks of width d, and their updates one tensor [blocks, d, d]. All sites share
the factors U and V; each block has a small matrix of its own (FacT-TT, tensor train), or a row of coefficients of a
shared core (FacT-TK, Tucker).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, not_zero, one_of, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.quantization.kinds import frozen_weight
from vispeft.peft.targets import Site


@dataclass(frozen=True)
class FacT(Method):
    """`y + scale * V(S_l(U x))` for each block of width d, with U and V shared by all sites; V starts at zero.

    The start is that of the authors' code, without its dropout of 0.1 before V.

    rank: rows of U and columns of V
    scale: of the update
    form: `tt` (a trained S for each block) or `tk` (S from a core that all sites share)
    """

    name: ClassVar[str] = "fact"
    rank: int
    scale: float = 1.0
    form: str = "tt"

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        not_zero("scale", self.scale)
        one_of("form", self.form, ("tt", "tk"))

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map."""
        if not isinstance(module, nn.Linear):
            raise PlanError(f"`fact` serves nn.Linear modules and matrices, but this is a {type(module).__name__}.")
        return LinearFacT(self, self._update(frozen_weight(module), context))

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in]."""
        if parameter.ndim != 2:
            raise PlanError(f"`fact` serves parameters [out, in], but this one is {list(parameter.shape)}.")
        return WeightFacT(self, self._update(parameter, context))

    def _update(self, weight: Tensor, context: Context) -> BlockUpdate:
        return BlockUpdate(self, weight, context.shared(lambda: SharedFactors(self, context.sites)))


class SharedFactors(nn.Module):
    """Factors `u` [r, d] and `v` [d, r] of all sites, and in Tucker form the `core` [r, r, r].

    The width d is the greatest common divisor of the sides of all sites, in a ViT its embedding width.
    """

    def __init__(self, method: FacT, sites: Sequence[Site]) -> None:
        super().__init__()
        # without the sites that are refused when their turn comes
        weights = [weight for site in sites if (weight := _weight(site)) is not None]
        self.width = math.gcd(*(side for weight in weights for side in weight.shape))
        if self.width < method.rank:
            raise PlanError(
                f"`rank` must be at most {self.width}, the greatest common divisor of the widths of all sites, but is "
                f"{method.rank}. Name sites whose widths are multiples of a larger number."
            )
        like = weights[0]
        self.u, self.v = trainable(method.rank, self.width, like=like), trainable(self.width, method.rank, like=like)
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        self.core = trainable(method.rank, method.rank, method.rank, like=like) if method.form == "tk" else None
        if self.core is not None:
            nn.init.xavier_uniform_(self.core)


class BlockUpdate(nn.Module):
    """Update of one weight: `s` [out / d * r, in / d * r], or in Tucker form the coefficients `p` [blocks, r]."""

    def __init__(self, method: FacT, weight: Tensor, shared: SharedFactors) -> None:
        super().__init__()
        self.shared, self.scale, self.rank = shared, method.scale, method.rank
        self.rows, self.columns = weight.shape[0] // shared.width, weight.shape[1] // shared.width
        if shared.core is None:
            self.s = trainable(self.rows * method.rank, self.columns * method.rank, like=weight)
            nn.init.kaiming_uniform_(self.s, a=math.sqrt(5))
        else:
            self.p = trainable(self.rows * self.columns, method.rank, like=weight)
            nn.init.xavier_uniform_(self.p)

    def middle(self) -> Tensor:
        """Return the small matrices of all blocks [out / d * r, in / d * r]."""
        if self.shared.core is None:
            return self.s
        blocks: Tensor = torch.tensordot(self.p, self.shared.core, dims=1).view(
            self.rows, self.columns, self.rank, self.rank
        )
        return blocks.transpose(1, 2).flatten(2).flatten(0, 1)

    def output(self, x: Tensor) -> Tensor:
        """Return the update of the output [..., out] for x [..., in]."""
        u, v, middle = (factor.to(x.dtype) for factor in (self.shared.u, self.shared.v, self.middle()))
        leading = x.shape[:-1]
        hidden = F.linear(x.reshape(*leading, self.columns, self.shared.width), u).flatten(-2)
        hidden = F.linear(hidden, middle).view(*leading, self.rows, self.rank)
        return self.scale * F.linear(hidden, v).flatten(-2)

    def added_to(self, weight: Tensor) -> Tensor:
        """Return `W + scale * V S U` block by block, computed in the factors' precision and in the weight's dtype."""
        middle = self.middle().view(self.rows, self.rank, self.columns, self.rank)
        update = torch.einsum("ot,jtks,si->joki", self.shared.v, middle, self.shared.u)
        return (weight.to(update.dtype) + self.scale * update.reshape(weight.shape)).to(weight.dtype)


class LinearFacT(Delta):
    """Update of a linear map."""

    def __init__(self, method: FacT, update: BlockUpdate) -> None:
        super().__init__(method)
        self.update = update

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update. x: [..., in]; y: [..., out]."""
        return y + self.update.output(x.to(y.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * V S U`, and the bias as it is."""
        return self.update.added_to(weight), bias


class WeightFacT(WeightDelta):
    """Update of a matrix."""

    def __init__(self, method: FacT, update: BlockUpdate) -> None:
        super().__init__(method)
        self.update = update

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + scale * V S U`."""
        return self.update.added_to(weight)


def _weight(site: Site) -> Tensor | None:
    """Return the matrix of a site; None where the site has none."""
    if site.parameter is not None:
        parameter = site.module.get_parameter(site.parameter)
        return parameter if parameter.ndim == 2 else None
    return frozen_weight(site.module) if isinstance(site.module, nn.Linear) else None
