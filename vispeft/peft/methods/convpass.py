"""Convpass (Jie and Deng 2022, https://arxiv.org/abs/2207.07039): convolutional bypasses of vision transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vispeft_kernels.adapter import reference

from vispeft.errors import PlanError
from vispeft.peft.methods.base import (
    Delta,
    Method,
    WeightDelta,
    at_least,
    not_zero,
    one_of,
    reference_tensor,
    trainable,
    widths,
)
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.layout import ChannelDim, laid_out_like, refuse_resizing, refuse_sequence_first


def _quick_gelu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(1.702 x)`, the paper's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {**reference.ACTIVATIONS, "quick_gelu": _quick_gelu}


@dataclass(frozen=True)
class Convpass(Method):
    """`y + scale * up(act(conv(act(down(x)))))` with a 3x3 convolution over the feature map; `up` starts at zero.

    The maps and their start are those of the authors' code, without its dropout of 0.1 before `up`.

    width: channels of the convolution
    activation: gelu (exact), relu, silu or quick_gelu, the paper's
    """

    name: ClassVar[str] = "convpass"
    merges: ClassVar[bool] = False
    width: int = 8
    scale: float = 1.0
    activation: str = "gelu"

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)
        not_zero("scale", self.scale)
        one_of("activation", self.activation, ACTIVATIONS)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the bypass of any module whose widths are known and that sees tokens or a map."""
        if isinstance(module, nn.Conv2d):
            refuse_resizing(module)
        refuse_sequence_first(module, self.name)
        return ConvpassDelta(self, module, context)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: a bypass needs the input of a module."""
        raise PlanError("`convpass` serves modules, but this is a parameter. Name the module that it should bypass.")


class ConvpassDelta(Delta):
    """One bypass: `down` [w, in], `conv` [w, w, 3, 3] and `up` [out, w], with biases.

    `down` is Xavier-uniform, the convolution the identity and `up` zero at the start.
    """

    def __init__(self, method: Convpass, base: nn.Module, context: Context) -> None:
        super().__init__(method)
        size, width, like = widths(base), method.width, reference_tensor(base)
        self.channel_dim, self.scale = ChannelDim(size), method.scale
        self.activation = ACTIVATIONS[method.activation]
        self.sizes = context.map_sizes()
        self.down_w, self.down_b = trainable(width, size.inputs, like=like), trainable(width, like=like)
        self.conv_w, self.conv_b = trainable(width, width, 3, 3, like=like), trainable(width, like=like)
        self.up_w, self.up_b = trainable(size.outputs, width, like=like), trainable(size.outputs, like=like)
        nn.init.xavier_uniform_(self.down_w)
        nn.init.dirac_(self.conv_w)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the bypass of x added. x, y: tokens [B, N, C] or maps [B, C, H, W] or [B, H, W, C]."""
        dim = self.channel_dim.of(y)
        seen, stream = x.movedim(dim, -1).to(y.dtype), y.movedim(dim, -1)
        if seen.ndim not in (3, 4) or seen.shape[:-1] != stream.shape[:-1]:
            raise PlanError(
                "`convpass` needs tokens or maps of the same size as input and output of its module, but they are "
                f"{list(x.shape)} and {list(y.shape)}. Name another module."
            )
        hidden = self.activation(F.linear(seen, self.down_w.to(y.dtype), self.down_b.to(y.dtype)))
        hidden = self.activation(self._convolved(hidden))
        update = F.linear(hidden, self.up_w.to(y.dtype), self.up_b.to(y.dtype))
        return laid_out_like(y, (stream + self.scale * update).movedim(-1, dim))

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: a bypass is not linear."""
        return

    def _convolved(self, hidden: Tensor) -> Tensor:
        """Return tokens [B, N, w] or a map [B, H, W, w] after the convolution."""
        weight, bias = self.conv_w.to(hidden.dtype), self.conv_b.to(hidden.dtype)
        return self.sizes.apply_to_map(
            hidden,
            lambda maps: F.conv2d(maps, weight, bias, padding=1),
            # each prefix token is a map of one pixel, without neighbours
            lambda prefix: F.linear(prefix, weight[:, :, 1, 1], bias),
        )
