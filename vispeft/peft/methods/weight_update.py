"""Parts that methods with an update of the whole weight share: `W + update`, of a module or of a parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.convolution import Conv, ConvGeometry, check_plain_conv
from vispeft.peft.quantization.kinds import frozen_weight


class Update(nn.Module, ABC):
    """Trainable factors of an update of a weight, zero at the start."""

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the update [out, in], of a convolution with flattened kernels [out, in * kh * kw]."""


@dataclass(frozen=True)
class UpdateMethod(Method):
    """A method that adds an update to the weights of linear maps, convolutions and parameters."""

    @abstractmethod
    def update_of(self, weight: Tensor, context: Context) -> Update:
        """Return the factors for a weight [out, in, ...]."""

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map or a convolution."""
        match module:
            case nn.Linear():
                return LinearUpdate(self, self.update_of(frozen_weight(module), context))
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                check_plain_conv(self.name, module)
                return ConvUpdate(self, module, self.update_of(frozen_weight(module), context))
            case _:
                raise PlanError(
                    f"`{self.name}` serves linear maps, convolutions and parameters, but this is a "
                    f"{type(module).__name__}."
                )

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        if parameter.ndim not in (2, 4):
            raise PlanError(
                f"`{self.name}` serves parameters [out, in] and [out, in, kh, kw], but this one is "
                f"{list(parameter.shape)}."
            )
        return ParameterUpdate(self, self.update_of(parameter, context))


class LinearUpdate(Delta):
    """Update of a linear map."""

    def __init__(self, method: Method, update: Update) -> None:
        super().__init__(method)
        self.update = update

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update applied to x. x: [..., in]; y: [..., out]."""
        update: Tensor = self.update()
        return y + F.linear(x.to(y.dtype), update.to(y.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + update`, and the bias as it is."""
        return _updated(weight, self.update()), bias


class ConvUpdate(Delta):
    """Update of a convolution."""

    def __init__(self, method: Method, base: Conv, update: Update) -> None:
        super().__init__(method)
        self.update, self.geometry, self.kernel_shape = update, ConvGeometry(base), frozen_weight(base).shape

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update applied to x. x: [B, in, *size]; y: [B, out, *size]."""
        update: Tensor = self.update()
        return y + self.geometry.convolve(x.to(y.dtype), update.to(y.dtype).view(self.kernel_shape))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + update`, and the bias as it is."""
        return _updated(weight, self.update()), bias


class ParameterUpdate(WeightDelta):
    """Update of a parameter."""

    def __init__(self, method: Method, update: Update) -> None:
        super().__init__(method)
        self.update = update

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + update`."""
        return _updated(weight, self.update())


def _updated(weight: Tensor, update: Tensor) -> Tensor:
    """Return `W + update`, computed in the update's precision and in the weight's dtype."""
    return (weight.to(update.dtype) + update.view(weight.shape)).to(weight.dtype)
