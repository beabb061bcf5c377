"""Bottleneck adapters, after a module or beside it.

In sequence: Houlsby et al. 2019, https://arxiv.org/abs/1902.00751. Parallel: AdaptFormer, Chen et al. 2022,
https://arxiv.org/abs/2205.13535. Adapter+, in sequence with a trained scale for each channel: Steitz and Roth,
CVPR 2024, https://arxiv.org/abs/2406.06820.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn
from vispeft_kernels.adapter import ACTIVATIONS, bottleneck_add, bottleneck_chain

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
from vispeft.peft.methods.layout import ChannelDim, laid_out_like, refuse_resizing

CHAINS = ("additive", "last")
STARTS = ("uniform", "normal")

# standard deviation of a normal start (Houlsby et al. 2019, section 3.6); values beyond twice of it are drawn again
_NORMAL_STD = 0.01


@dataclass(frozen=True)
class Adapter(Method):
    """`y + scale * up(act(down(y)))`, `count` times one after the other; `up` starts at zero.

    width: features of the bottleneck; or reduction: how many times narrower it is than the site's output
    count: adapters at each site, from 0
    parallel: `down` reads the module's input x instead; the results of all `count` are added to y
    activation: gelu (exact), relu or silu
    chain: "additive", or "last": each adapter reads the result of the one before but is added to y itself, so that only
        the last one counts. That is what the public code of Abou Baker et al. 2024, https://doi.org/10.3390/make6040133,
        does; it is here for comparison with it alone
    channel_scale: a trained factor for each channel of the result of `up`, from ones: Adapter+
    start: of `down`, "uniform" as torch's linear maps, or "normal", truncated, with a standard deviation of 0.01, as in
        Houlsby et al. and Adapter+, which start `up` in the same way; here it is zero
    """

    name: ClassVar[str] = "adapter"
    merges: ClassVar[bool] = False
    width: int | None = None
    reduction: int | None = None
    count: int = 1
    parallel: bool = False
    activation: str = "gelu"
    scale: float = 1.0
    chain: str = "additive"
    channel_scale: bool = False
    start: str = "uniform"

    def __post_init__(self) -> None:
        if (self.width is None) == (self.reduction is None):
            given = "neither is" if self.width is None else "both are"
            raise PlanError(f"Exactly one of `width` and `reduction` must be given, but {given}.")
        if self.width is not None:
            at_least("width", self.width, 1)
        if self.reduction is not None:
            at_least("reduction", self.reduction, 1)
        at_least("count", self.count, 0)
        one_of("activation", self.activation, ACTIVATIONS)
        not_zero("scale", self.scale)
        one_of("chain", self.chain, CHAINS)
        one_of("start", self.start, STARTS)
        if self.parallel and self.chain != "additive":
            raise PlanError(f"Parallel adapters are not chained: `chain` must be additive, but is {self.chain!r}.")

    def for_module(self, module: nn.Module, context: Context) -> Delta | None:
        """Return the adapters for any module whose output width is known; None for a count of 0."""
        if self.count == 0:
            return None
        if self.parallel and isinstance(module, nn.Conv2d):
            refuse_resizing(module)
        return AdapterDelta(self, module)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: an adapter acts on outputs."""
        raise PlanError(
            "`adapter` serves modules, but this is a parameter. Name the module whose output it should follow."
        )


class Bottleneck(nn.Module):
    """One adapter's maps: `down` [width, in] and `up` [out, width], with biases; `up` is zero at the start."""

    def __init__(self, inputs: int, width: int, outputs: int, like: Tensor) -> None:
        super().__init__()
        self.down_w, self.down_b = trainable(width, inputs, like=like), trainable(width, like=like)
        self.up_w, self.up_b = trainable(outputs, width, like=like), trainable(outputs, like=like)
        nn.init.kaiming_uniform_(self.down_w, a=math.sqrt(5))

    def forward(self, y: Tensor, x: Tensor, activation: str, scale: float) -> Tensor:
        """Return `y + scale * up(act(down(x)))`. x: [..., in]; y: [..., out]."""
        return bottleneck_add(y, x, self.down_w, self.down_b, *self.up(), activation, scale)

    def up(self) -> tuple[Tensor, Tensor]:
        """Return weight [out, width] and bias [out] of the second map."""
        return self.up_w, self.up_b


class ScaledBottleneck(Bottleneck):
    """An adapter's maps with `channel_scale` [out], the factors of the rows of `up`, from ones."""

    def __init__(self, inputs: int, width: int, outputs: int, like: Tensor) -> None:
        super().__init__(inputs, width, outputs, like)
        self.channel_scale = trainable(outputs, like=like)
        nn.init.ones_(self.channel_scale)

    def up(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of `up` times the factors."""
        return self.channel_scale[:, None] * self.up_w, self.channel_scale * self.up_b


class AdapterDelta(Delta):
    """The adapters of one site, named "0", "1", ... in the order in which they run."""

    def __init__(self, method: Adapter, base: nn.Module) -> None:
        super().__init__(method)
        size = widths(base)
        inputs = size.inputs if method.parallel else size.outputs
        width = method.width if method.width is not None else size.outputs // cast(int, method.reduction)
        if width < 1:
            raise PlanError(f"`reduction` must be at most the site's width {size.outputs}, but is {method.reduction}.")
        self.parallel, self.channel_dim = method.parallel, ChannelDim(size)
        self.activation, self.scale = method.activation, method.scale
        self.is_additive = method.chain == "additive"
        like = reference_tensor(base)
        kind = ScaledBottleneck if method.channel_scale else Bottleneck
        for index in range(method.count):
            bottleneck = kind(inputs, width, size.outputs, like)
            if method.start == "normal":
                nn.init.trunc_normal_(bottleneck.down_w, std=_NORMAL_STD, a=-2 * _NORMAL_STD, b=2 * _NORMAL_STD)
            self.add_module(str(index), bottleneck)

    @property
    def dim(self) -> int | None:
        """Dimension of the channels of maps, 1 or -1; None before the first one that tells it."""
        dim: int | None = self.channel_dim.of_maps
        return dim

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y after every adapter in turn, or with the result of every adapter on x added."""
        dim = self.channel_dim.of(y)
        start = stream = y.movedim(dim, -1)
        seen = x.movedim(dim, -1) if self.parallel else None
        adapters = [adapter for adapter in self.children() if isinstance(adapter, Bottleneck)]
        if self.is_additive and seen is None:
            down = [one.down_w for one in adapters], [one.down_b for one in adapters]
            up_w, up_b = zip(*(one.up() for one in adapters), strict=True)
            stream = bottleneck_chain(stream, *down, up_w, up_b, activation=self.activation, scale=self.scale)
        else:
            for adapter in adapters:
                base_of_sum = stream if self.is_additive else start
                stream = adapter(base_of_sum, stream if seen is None else seen, self.activation, self.scale)
        return laid_out_like(y, stream.movedim(-1, dim))

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: an adapter is not linear."""
        return
