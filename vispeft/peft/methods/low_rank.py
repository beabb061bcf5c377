"""Parts that LoRA and DoRA share: options, checks of a site, and the factors A and B of one rank-limited update."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vispeft_kernels.lora import lora_add, lora_update

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, not_zero, one_of, trainable
from vispeft.peft.methods.base_modules import is_plain_linear
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.convolution import Conv, ConvGeometry, check_plain_conv, pointwise
from vispeft.peft.methods.qkv import check_parts, part_rows
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs
from vispeft.peft.quantization.kinds import frozen_weight
from vispeft.peft.targets import Site

# divisor of alpha by the name of a scaling: the rank, or its square root as in rsLoRA (Kalajdzievski 2023,
# https://arxiv.org/abs/2312.03732, theorem 3.2), with which the size of updates does not fall with the rank
SCALINGS = {"rank": float, "sqrt_rank": math.sqrt}


@dataclass(frozen=True)
class LowRank(Method):
    """Options of a low-rank update; a subclass builds the deltas of the three kinds of sites.

    rank: columns of B and rows of A, per part
    alpha: numerator of the scale; the rank where it is not given
    parts: of a fused query-key-value projection, those to adapt ("q", "v", "qv", ...), each with factors of its own;
    empty is one pair of factors for the whole map
    dropout: on x before A, in training; for module sites only
    scaling: divisor of alpha, `rank` or `sqrt_rank`
    """

    rank: int
    alpha: float | None = None
    parts: str = ""
    dropout: float = 0.0
    scaling: str = "rank"

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        check_parts(self.parts)
        if not 0 <= self.dropout < 1:
            raise PlanError(f"`dropout` must be at least 0 and below 1, but is {self.dropout}.")
        if self.alpha is not None:
            not_zero("alpha", self.alpha)
        one_of("scaling", self.scaling, SCALINGS)

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / SCALINGS[self.scaling](self.rank)

    @abstractmethod
    def for_linear(self, module: nn.Linear, context: Context) -> Delta:
        """Return the delta for a linear map."""

    @abstractmethod
    def for_conv(self, module: Conv, context: Context) -> Delta:
        """Return the delta for a convolution."""

    @abstractmethod
    def for_other(self, module: nn.Module) -> Delta:
        """Return the delta for a module of another kind. Raise `unserved` for one that is not served."""

    @abstractmethod
    def for_weight(self, weight: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""

    def for_module(self, module: nn.Module, context: Context | None = None) -> Delta:
        """Return the delta for a linear map or a convolution.

        context: without one, that of a site on its own, so that the method can be asked which modules it serves
        """
        context = context or Context((Site("", module),))
        match module:
            case nn.Linear():
                return self.for_linear(module, context)
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                check_plain_conv(self.name, module)
                return self.for_conv(module, context)
            case _:
                return self.for_other(module)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        self._check_parameter(parameter)
        return self.for_weight(parameter, context)

    def _check_parameter(self, parameter: Tensor) -> None:
        if parameter.ndim not in (2, 4):
            raise PlanError(
                f"`{self.name}` serves parameters [out, in] and [out, in, kh, kw], but this one is "
                f"{list(parameter.shape)}."
            )
        if self.dropout:
            raise PlanError(
                f"`dropout` must be 0 on a parameter, which has no input, but is {self.dropout}. "
                f"Set it to 0, or name a module that is called."
            )


def unserved(name: str, module: nn.Module, served: str) -> PlanError:
    """Return the error for a module that a method does not serve. served: the kinds that it does"""
    kind = type(module)
    # of a quantised map the bare name would be that of a map that is served
    shown = f"{kind.__module__}.{kind.__name__}" if hasattr(nn, kind.__name__) else kind.__name__
    return PlanError(f"`{name}` serves {served} and parameters, but this is a {shown}.")


class LinearFactors(Delta):
    """Factors of a linear map: `a` [parts * r, in], `b` [parts * out of a part, r]."""

    def __init__(self, method: LowRank, weight: Tensor, recomputed_inputs: RecomputedInputs) -> None:
        super().__init__(method)
        self.outputs, self.rows = weight.shape[0], part_rows(method.parts, weight.shape[0])
        self.column_offsets = tuple(rows.start for rows in self.rows)
        self.scale, self.dropout = method.scale, method.dropout
        self.a, self.b = _factors(method.rank, self.rows, weight)
        self.recomputed_inputs = recomputed_inputs

    @property
    def active_dropout(self) -> float:
        """Dropout rate of this call: 0 outside of training."""
        return self.dropout if self.training else 0.0

    def update(self, x: Tensor, y: Tensor, base: nn.Module | None, a: Tensor, b: Tensor) -> Tensor:
        """Return y with the low-rank update by b and a on the rows of its parts.

        x: [..., in]; y: [..., out]; base: as in `Delta.forward`; a, b: as A and B, of any rank
        """
        offsets, dropout = self.column_offsets, self.active_dropout
        if base is None or not is_plain_linear(base):
            return lora_add(y, x, a, b, self.scale, column_offsets=offsets, dropout=dropout)
        return lora_update(
            y,
            x,
            base.weight,
            base.bias,
            a,
            b,
            self.scale,
            column_offsets=offsets,
            dropout=dropout,
            recompute=self.recomputed_inputs.recompute_of(x),
        )


class ConvFactors(Delta):
    """Factors of a convolution: `a` [r, in / groups, *kernel] with the base's geometry, `b` [out, r, 1, ...]."""

    def __init__(self, method: LowRank, base: Conv) -> None:
        super().__init__(method)
        if method.parts:
            raise PlanError(f"`parts` must be empty on a convolution, but is {method.parts!r}.")
        self.scale, self.dropout = method.scale, method.dropout
        self.geometry = ConvGeometry(base)
        self.outputs, self.rows = base.out_channels, part_rows("", base.out_channels)
        self.a, self.b = _factors(method.rank, self.rows, frozen_weight(base))

    def update(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return y with the low-rank update by b and a.

        x: [B, in, *size]; y: [B, out, *size]; a, b: as A and B, of any rank
        """
        x = F.dropout(x.to(y.dtype), self.dropout, self.training)
        a, b = (factor.to(y.dtype) for factor in (a, b))
        groups = self.geometry.groups
        # every group of channels has the same A
        hidden = self.geometry.convolve(x, a if groups == 1 else torch.cat([a] * groups))
        return torch.add(y, pointwise(hidden, b, groups), alpha=self.scale)


class WeightFactors(WeightDelta):
    """Factors of a parameter [out, in] or [out, in, kh, kw], shaped as those of a linear map or a convolution."""

    def __init__(self, method: LowRank, weight: Tensor) -> None:
        super().__init__(method)
        self.outputs, self.rows = weight.shape[0], part_rows(method.parts, weight.shape[0])
        self.scale = method.scale
        self.a, self.b = _factors(method.rank, self.rows, weight)


def add_product(weight: Tensor, a: Tensor, b: Tensor, scale: float, rows: list[slice]) -> Tensor:
    """Return `W + scale * B A` on the rows of each part, computed in the factors' precision and in the weight's dtype.

    weight: [out, ...]; a: [parts * r, ...]; b: [parts * rows of a part, r, ...]
    """
    flat, a, b = weight.flatten(1).to(a.dtype), a.flatten(1), b.flatten(1)
    pieces, end = [], 0
    for part, a_part, b_part in zip(rows, a.chunk(len(rows)), b.chunk(len(rows)), strict=True):
        pieces += [flat[end : part.start], torch.addmm(flat[part], b_part, a_part, alpha=scale)]
        end = part.stop
    return torch.cat([*pieces, flat[end:]]).view(weight.shape).to(weight.dtype)


def _factors(rank: int, rows: list[slice], weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A, Kaiming-uniform as in the paper's code, and B, zero, for each part, stacked."""
    largest = max(weight.shape[0], weight[0].numel())
    if rank > largest:
        raise PlanError(f"`rank` must be at most {largest}, the larger side of this site, but is {rank}.")
    parts, height = len(rows), rows[0].stop - rows[0].start
    a = trainable(parts * rank, *weight.shape[1:], like=weight)
    for part in a.data.chunk(parts):
        nn.init.kaiming_uniform_(part, a=math.sqrt(5))
    return a, trainable(parts * height, rank, *(1 for _ in weight.shape[2:]), like=weight)
