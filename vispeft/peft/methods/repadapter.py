"""RepAdapter (Luo et al. 2023, https://arxiv.org/abs/2302.08106): linear adapters before a map, which merge into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import (
    AroundDelta,
    Delta,
    Method,
    WeightDelta,
    at_least,
    not_zero,
    reference_tensor,
    trainable,
    widths,
)
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.layout import laid_out_like


@dataclass(frozen=True)
class RepAdapter(Method):
    """`W (x + scale * (B (A x + a) + b)) + c` (equations 5 and 6), B in groups; B starts at zero.

    Without an activation, the adapter is linear and merges into weight and bias of the map (equations 8 and 9). The
    authors' dropout of 0.1 before B is left out.

    width: features between A and B
    groups: blocks of the block-diagonal B
    """

    name: ClassVar[str] = "repadapter"
    width: int = 8
    groups: int = 2
    scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)
        at_least("groups", self.groups, 1)
        if self.width % self.groups:
            raise PlanError(f"`groups` must divide `width`, which is {self.width}, but is {self.groups}.")
        not_zero("scale", self.scale)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the adapter before a linear map or a convolution."""
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise PlanError(
                f"`repadapter` serves nn.Linear and nn.Conv2d modules, but this is a {type(module).__name__}."
            )
        return RepAdapterDelta(self, module)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: the adapter changes an input."""
        raise PlanError(
            "`repadapter` serves modules, but this is a parameter. Name the module whose input it should change."
        )


class RepAdapterDelta(AroundDelta):
    """`down_w` [w, in] and `down_b` [w], Xavier-uniform and zero; `up_w` [in, w / groups] and `up_b` [in], zero."""

    def __init__(self, method: RepAdapter, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__(method)
        size, like = widths(base), reference_tensor(base)
        inputs = size.inputs
        self.dim, self.groups, self.scale = size.dim, method.groups, method.scale
        self.merges = isinstance(base, nn.Linear) or _merges(base)
        if inputs % self.groups:
            raise PlanError(f"`groups` must divide the site's {inputs} inputs, but is {self.groups}.")
        self.down_w, self.down_b = trainable(method.width, inputs, like=like), trainable(method.width, like=like)
        self.up_w = trainable(inputs, method.width // self.groups, like=like)
        self.up_b = trainable(inputs, like=like)
        nn.init.xavier_uniform_(self.down_w)

    def before(self, x: Tensor) -> Tensor:
        """Return x with the adapter's result added. x: [..., in] or [B, in, H, W]."""
        features = x.movedim(self.dim, -1)
        dtype = x.dtype
        hidden = F.linear(features, self.down_w.to(dtype), self.down_b.to(dtype))
        if self.groups == 1:
            update = F.linear(hidden, self.up_w.to(dtype), self.up_b.to(dtype))
        else:
            blocks = torch.stack(self.up_w.to(hidden.dtype).chunk(self.groups))  # [groups, in / groups, w / groups]
            hidden = hidden.reshape(*hidden.shape[:-1], self.groups, hidden.shape[-1] // self.groups)
            update = torch.einsum("...gw,giw->...gi", hidden, blocks).flatten(-2) + self.up_b.to(dtype)
        return laid_out_like(x, (features + self.scale * update).movedim(-1, self.dim))

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return the output of the frozen map as it is."""
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return `W + scale * W B A` and `c + scale * W (B a + b)`; None without a bias, or if a convolution pads."""
        if bias is None or not self.merges:
            return None
        up: Tensor = torch.block_diag(*self.up_w.chunk(self.groups))  # type: ignore[no-untyped-call]  # [in, w]
        dtype = up.dtype
        kernel = weight.to(dtype)
        update = torch.einsum("oi...,ij->oj...", kernel, up @ self.down_w)
        shift = kernel.flatten(2).sum(2) if kernel.ndim > 2 else kernel
        added = shift @ (up @ self.down_b + self.up_b)
        return (kernel + self.scale * update).to(weight.dtype), (bias.to(dtype) + self.scale * added).to(bias.dtype)


def _merges(base: nn.Conv2d) -> bool:
    """Return True for a convolution of one group in which no zeros, which the adapter does not see, are padded."""
    pads = base.padding_mode == "zeros" and base.padding != "valid" and set(base.padding) != {0}
    return base.groups == 1 and not pads
