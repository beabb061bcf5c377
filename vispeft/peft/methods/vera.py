"""VeRA (Kopiczko et al. 2024, https://arxiv.org/abs/2310.11454): frozen random factors, shared by all sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, not_zero, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.quantization.kinds import frozen_weight
from vispeft.peft.targets import Site


@dataclass(frozen=True)
class VeRA(Method):
    """`y + b * B(d * A x)` (equation 2) with one frozen random pair A and B for all sites; b starts at zero.

    rank: rows of A and columns of B
    start: value at which the trained d starts
    """

    name: ClassVar[str] = "vera"
    rank: int
    start: float = 0.1

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        not_zero("start", self.start)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map."""
        if not isinstance(module, nn.Linear):
            raise PlanError(f"`vera` serves nn.Linear modules and matrices, but this is a {type(module).__name__}.")
        return LinearVeRA(self, frozen_weight(module), context.shared(lambda: Projections(self.rank, context.sites)))

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in]."""
        if parameter.ndim != 2:
            raise PlanError(f"`vera` serves parameters [out, in], but this one is {list(parameter.shape)}.")
        return WeightVeRA(self, parameter, context.shared(lambda: Projections(self.rank, context.sites)))


class Projections(nn.Module):
    """Frozen random factors `a` [r, in] and `b` [out, r] for the widest site; others use the first columns or rows.

    Drawn as the paper does, Kaiming-uniform.
    """

    def __init__(self, rank: int, sites: Sequence[Site]) -> None:
        super().__init__()
        # without the sites that are refused when their turn comes
        weights = [weight for site in sites if (weight := _weight(site)) is not None]
        a = trainable(rank, max(weight.shape[1] for weight in weights), like=weights[0])
        b = trainable(max(weight.shape[0] for weight in weights), rank, like=weights[0])
        for factor in (a, b):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        self.register_buffer("a", a.detach())
        self.register_buffer("b", b.detach())

    def factors(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """Return A [r, in] and B [out, r] for a map of these widths."""
        return self.get_buffer("a")[:, :inputs], self.get_buffer("b")[:outputs]


class LinearVeRA(Delta):
    """Scales of a linear map: `scale_d` [r] and `scale_b` [out]."""

    def __init__(self, method: VeRA, weight: Tensor, projections: Projections) -> None:
        super().__init__(method)
        self.projections = projections
        self.scale_d, self.scale_b = _scales(method, weight)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update. x: [..., in]; y: [..., out]."""
        a, b = (factor.to(y.dtype) for factor in self.projections.factors(x.shape[-1], y.shape[-1]))
        hidden = F.linear(x.to(y.dtype), a) * self.scale_d.to(y.dtype)
        return y + F.linear(hidden, b) * self.scale_b.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + (b B)(d A)`, and the bias as it is."""
        return _updated(weight, self.projections, self.scale_d, self.scale_b), bias


class WeightVeRA(WeightDelta):
    """Scales of a matrix: `scale_d` [r] and `scale_b` [out]."""

    def __init__(self, method: VeRA, weight: Tensor, projections: Projections) -> None:
        super().__init__(method)
        self.projections = projections
        self.scale_d, self.scale_b = _scales(method, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + (b B)(d A)`."""
        return _updated(weight, self.projections, self.scale_d, self.scale_b)


def _scales(method: VeRA, weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Return d, constant, and b, zero."""
    d, b = trainable(method.rank, like=weight), trainable(weight.shape[0], like=weight)
    nn.init.constant_(d, method.start)
    return d, b


def _updated(weight: Tensor, projections: Projections, scale_d: Tensor, scale_b: Tensor) -> Tensor:
    """Return `W + (b B)(d A)` in the scales' precision, then in the weight's dtype."""
    a, b = projections.factors(weight.shape[1], weight.shape[0])
    product = (scale_b[:, None] * b.to(scale_b.dtype)) @ (scale_d[:, None] * a.to(scale_d.dtype))
    return (weight.to(product.dtype) + product).to(weight.dtype)


def _weight(site: Site) -> Tensor | None:
    """Return the matrix of a site; None where the site has none."""
    if site.parameter is not None:
        parameter = site.module.get_parameter(site.parameter)
        return parameter if parameter.ndim == 2 else None
    return frozen_weight(site.module) if isinstance(site.module, nn.Linear) else None
