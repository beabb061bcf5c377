"""Conv-LoRA (Zhong et al. 2024, https://arxiv.org/abs/2401.17868): convolutions at several scales within LoRA.

The paper has a mixture of experts between A and B, `W x + B sum_i G(A x)_i E_i(A x)` (section 3). Expert i enlarges the
feature map i times, convolves it with a 3x3 kernel and reduces it again; the gate G chooses one expert for each image.
As in the authors' code, a GELU follows the kernel and A x itself is added to the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, not_zero, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.map_sizes import SiteSizes
from vispeft.peft.quantization.kinds import frozen_weight

# smallest standard deviation of the gate's noise, as in the authors' code
_LEAST_NOISE = 1e-2


@dataclass(frozen=True)
class ConvLoRA(Method):
    """`y + alpha / rank * B(h + p_i * expert_i(h))` with `h = A x` and the likeliest expert i; B starts at zero.

    rank: rows of A, columns of B and channels of the experts
    alpha: numerator of the scale; the rank where it is not given
    experts: their number; expert i, from 1, works on a map i times as large
    """

    name: ClassVar[str] = "conv_lora"
    merges: ClassVar[bool] = False
    lora_plus_tensors: ClassVar[tuple[str, ...]] = ("b",)
    rank: int
    alpha: float | None = None
    experts: int = 8

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        at_least("experts", self.experts, 1)
        if self.alpha is not None:
            not_zero("alpha", self.alpha)

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map that sees tokens or a map [B, H, W, C]."""
        if not isinstance(module, nn.Linear):
            raise PlanError(f"`conv_lora` serves nn.Linear modules, but this is a {type(module).__name__}.")
        return ConvLoRADelta(self, frozen_weight(module), context.map_sizes())

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: the experts need the input of a module."""
        raise PlanError("`conv_lora` serves modules, but this is a parameter. Name the linear map that is called.")


class ConvLoRADelta(Delta):
    """Factors `a` [r, in] and `b` [out, r], with the experts between them."""

    def __init__(self, method: ConvLoRA, weight: Tensor, sizes: SiteSizes) -> None:
        super().__init__(method)
        self.scale, self.sizes = method.scale, sizes
        self.a, self.b = (
            trainable(method.rank, weight.shape[1], like=weight),
            trainable(weight.shape[0], method.rank, like=weight),
        )
        self.experts = Experts(method.experts, method.rank, weight)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update. x: tokens [B, N, in] or a map [B, H, W, in]; y: [..., out].

        Prefix tokens, which have no place in the map, get the low-rank update alone.
        """
        if x.ndim not in (3, 4):
            raise PlanError(f"`conv_lora` needs tokens [B, N, C] or maps [B, H, W, C], but gets {list(x.shape)}.")
        hidden = F.linear(x.to(y.dtype), self.a.to(y.dtype))
        hidden = self.sizes.apply_to_map(hidden, self.experts, lambda prefix: prefix)
        return torch.add(y, F.linear(hidden, self.b.to(y.dtype)), alpha=self.scale)

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: the experts are not linear."""
        return


class Experts(nn.Module):
    """Experts `conv_w` [n, r, r, 3, 3] and `conv_b` [n, r], and the gate's maps `gate` and `noise` [n, r], zero."""

    def __init__(self, count: int, rank: int, like: Tensor) -> None:
        super().__init__()
        self.conv_w, self.conv_b = trainable(count, rank, rank, 3, 3, like=like), trainable(count, rank, like=like)
        self.gate, self.noise = trainable(count, rank, like=like), trainable(count, rank, like=like)
        for kernel in self.conv_w.data:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps plus those of the expert that the gate chooses for each image. maps: [B, r, H, W]"""
        probs = self.probabilities(maps)  # [B, n]
        chosen = probs.argmax(1)
        result = maps
        for number in sorted(set(chosen.tolist())):
            images = (chosen == number).nonzero().flatten()
            output = self._expert(maps[images], number)
            weights = probs[images, number].to(output.dtype)
            result = result.index_add(0, images, output * weights[:, None, None, None])
        return result

    def probabilities(self, maps: Tensor) -> Tensor:
        """Return the probabilities of the experts [B, n], by the mean of each map, with noise in training."""
        means = maps.mean((2, 3)).to(self.gate.dtype)
        logits = F.linear(means, self.gate)
        if self.training:
            deviation = F.softplus(F.linear(means, self.noise)) + _LEAST_NOISE
            logits = logits + torch.randn_like(logits) * deviation
        return logits.softmax(1)

    def _expert(self, maps: Tensor, number: int) -> Tensor:
        """Return the output of one expert for maps [B, r, H, W], in the same size."""
        ratio, size = number + 1, maps.shape[2:]
        if ratio > 1:
            maps = F.interpolate(maps, scale_factor=ratio, mode="bicubic")
        kernel, bias = self.conv_w[number].to(maps.dtype), self.conv_b[number].to(maps.dtype)
        maps = F.gelu(F.conv2d(maps, kernel, bias, padding=1))
        return maps if ratio == 1 else F.interpolate(maps, size=size, mode="bicubic")
