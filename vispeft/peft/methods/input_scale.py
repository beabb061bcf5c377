"""Scales on a map's input, as IA3 has them on the activations inside an MLP."""

from __future__ import annotations

from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import AroundDelta, Method, trainable, widths
from vispeft.peft.quantization.kinds import frozen_weight


class InputGain(AroundDelta):
    """`gain` [in], the scales, from ones: one number per feature of the input of a linear map or a convolution."""

    def __init__(self, method: Method, base: nn.Module) -> None:
        super().__init__(method)
        if not isinstance(base, nn.Linear | nn.Conv2d):
            raise PlanError(
                f"`{method.name}` with `side: input` serves nn.Linear and nn.Conv2d modules, but this is a "
                f"{type(base).__name__}."
            )
        self.dim = widths(base).dim
        self.groups = base.groups if isinstance(base, nn.Conv2d) else 1
        self.gain = trainable(widths(base).inputs, like=frozen_weight(base))
        nn.init.ones_(self.gain)

    def before(self, x: Tensor) -> Tensor:
        """Return `x * scale`. x: [..., in] or [B, in, H, W]."""
        gain = self.gain.to(x.dtype)
        return x * (gain.view(-1, 1, 1) if self.dim == 1 else gain)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y as it is."""
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return the weight's columns times the scales, and the bias. The weight has the map's other updates."""
        # [groups, 1, in / groups, 1] against the rows of each group
        columns = self.gain.view(self.groups, 1, -1, 1)
        rows = weight.to(self.gain.dtype).view(self.groups, -1, columns.shape[2], weight[0, 0].numel())
        return (rows * columns).view(weight.shape).to(weight.dtype), bias
