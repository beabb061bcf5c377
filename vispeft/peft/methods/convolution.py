"""Geometry of a frozen convolution, for updates of its output that are convolutions themselves."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.quantization.maps import QuantizedConv2d

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ConvGeometry:
    """Stride, padding, dilation and groups of a convolution."""

    def __init__(self, base: Conv) -> None:
        self.stride, self.dilation, self.groups = base.stride, base.dilation, base.groups
        is_zeros = base.padding_mode == "zeros"
        self.padding = base.padding if is_zeros else 0
        # other values than zeros are put around x first
        self.margins = [] if is_zeros else _margins(base)
        self.padding_mode = base.padding_mode

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of x [B, in, *size] with a kernel [out, in / groups, *kernel], without a bias."""
        if self.margins:
            x = F.pad(x, self.margins, self.padding_mode)
        match weight.ndim:
            case 3:
                return F.conv1d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
            case 4:
                return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
            case _:
                return F.conv3d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


def pointwise(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Return the convolution of x [B, in, *size] with a kernel [out, in / groups, 1, ...] of size 1."""
    match weight.ndim:
        case 3:
            return F.conv1d(x, weight, groups=groups)
        case 4:
            return F.conv2d(x, weight, groups=groups)
        case _:
            return F.conv3d(x, weight, groups=groups)


def check_plain_conv(name: str, module: Conv) -> None:
    """Refuse a convolution that pads or changes its weights in a way of its own. name: of the method"""
    if type(module) is QuantizedConv2d:
        return
    plain = next(kind for kind in _KINDS if isinstance(module, kind))
    if type(module).forward is not plain.forward or type(module)._conv_forward is not plain._conv_forward:
        raise PlanError(
            f"`{name}` cannot follow the padding or weights of a {type(module).__name__}. "
            f"Name its `weight` parameter instead."
        )


def _margins(base: Conv) -> list[int]:
    """Return the padding of a convolution by other values than zeros: left, right, top, bottom, front and back."""
    sizes: list[int] = []
    for axis in reversed(range(len(base.kernel_size))):
        whole = base.dilation[axis] * (base.kernel_size[axis] - 1)
        match base.padding:
            case "same":
                sizes += [whole // 2, whole - whole // 2]
            case "valid":
                sizes += [0, 0]
            case _:
                sizes += [int(base.padding[axis])] * 2
    return sizes
