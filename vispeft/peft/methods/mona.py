"""Mona (Yin et al., CVPR 2025, https://arxiv.org/abs/2408.08345): adapters with depth-wise filters of several sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, reference_tensor, trainable, widths
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.layout import ChannelDim, laid_out_like, refuse_sequence_first

_KERNEL_SIZES = (3, 5, 7)


@dataclass(frozen=True)
class Mona(Method):
    """`y + up(gelu(h + project(h)))`, `h = d + filters(d)`, `d = down(s1 * LN(y) + s2 * y)`; `up` starts at zero.

    `filters` is the mean of three depth-wise convolutions over the feature map, of 3x3, 5x5 and 7x7. The maps are those
    of the authors' code, without its dropout of 0.1 before `up`, and so is their start, but for `up`: in the authors'
    code it is uniform, so that the first output differs from the pretrained one.

    width: channels of the filters
    """

    name: ClassVar[str] = "mona"
    merges: ClassVar[bool] = False
    width: int = 64

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the adapter of any module whose output width is known and that gives tokens or a map."""
        refuse_sequence_first(module, self.name)
        return MonaDelta(self, module, context)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: the adapter acts on outputs."""
        raise PlanError(
            "`mona` serves modules, but this is a parameter. Name the module whose output it should follow."
        )


class MonaDelta(Delta):
    """The adapter of one site, with a bias `*_b` for each weight `*_w`.

    norm: [d], of the LayerNorm, with the scales `norm_scale` (s1) from 1e-6 and `input_scale` (s2) from one
    down, project, up: [w, d], [w, w] and [d, w]
    conv3, conv5, conv7: [w, 1, k, k]
    """

    def __init__(self, method: Mona, base: nn.Module, context: Context) -> None:
        super().__init__(method)
        size, width, like = widths(base), method.width, reference_tensor(base)
        self.channel_dim, self.sizes = ChannelDim(size), context.map_sizes()
        channels = size.outputs
        self.norm_w, self.norm_b = trainable(channels, like=like), trainable(channels, like=like)
        self.norm_scale, self.input_scale = trainable(channels, like=like), trainable(channels, like=like)
        self.down_w, self.down_b = trainable(width, channels, like=like), trainable(width, like=like)
        self.conv3_w, self.conv3_b = trainable(width, 1, 3, 3, like=like), trainable(width, like=like)
        self.conv5_w, self.conv5_b = trainable(width, 1, 5, 5, like=like), trainable(width, like=like)
        self.conv7_w, self.conv7_b = trainable(width, 1, 7, 7, like=like), trainable(width, like=like)
        self.project_w, self.project_b = trainable(width, width, like=like), trainable(width, like=like)
        self.up_w, self.up_b = trainable(channels, width, like=like), trainable(channels, like=like)
        nn.init.ones_(self.norm_w)
        nn.init.constant_(self.norm_scale, 1e-6)
        nn.init.ones_(self.input_scale)
        for name in ("down", "conv3", "conv5", "conv7", "project"):
            weight, bias = self._map(name)
            bound = weight[0].numel() ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the adapter's result added. y: tokens [B, N, C] or maps [B, C, H, W] or [B, H, W, C]."""
        dim, dtype = self.channel_dim.of(y), y.dtype
        stream = y.movedim(dim, -1)
        if stream.ndim not in (3, 4):
            raise PlanError(
                f"`mona` needs tokens or maps as output of its module, but it is {list(y.shape)}. Name another module."
            )
        normed = F.layer_norm(stream, stream.shape[-1:], self.norm_w.to(dtype), self.norm_b.to(dtype))
        seen = normed * self.norm_scale.to(dtype) + stream * self.input_scale.to(dtype)
        hidden = self._filtered(self._linear("down", seen))
        hidden = hidden + self._linear("project", hidden)
        return laid_out_like(y, (stream + self._linear("up", F.gelu(hidden))).movedim(-1, dim))

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: the adapter is not linear."""
        return

    def _map(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight and bias of one map."""
        return self.get_parameter(f"{name}_w"), self.get_parameter(f"{name}_b")

    def _linear(self, name: str, features: Tensor) -> Tensor:
        """Return features [..., in] after a linear map."""
        weight, bias = self._map(name)
        return F.linear(features, weight.to(features.dtype), bias.to(features.dtype))

    def _filtered(self, hidden: Tensor) -> Tensor:
        """Return `d + filters(d)` of tokens [B, N, w] or a map [B, H, W, w]; prefix tokens have no filters.

        The mean of the convolutions is one convolution by the mean of their kernels, padded to the largest one.
        """
        largest, dtype = _KERNEL_SIZES[-1], hidden.dtype
        weights, biases = zip(*(self._map(f"conv{size}") for size in _KERNEL_SIZES), strict=True)
        padded = [F.pad(weight, [(largest - weight.shape[-1]) // 2] * 4) for weight in weights]
        weight, bias = torch.stack(padded).mean(0).to(dtype), torch.stack(biases).mean(0).to(dtype)
        return self.sizes.apply_to_map(
            hidden,
            lambda maps: maps + F.conv2d(maps, weight, bias, padding=largest // 2, groups=maps.shape[1]),
            lambda prefix: prefix,
        )
