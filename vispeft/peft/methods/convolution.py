"""Geometry of a frozen convolution, for updates of its output that are convolutions themselves."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.quantization.maps import QuantizedConv2d


class ConvGeometry:
    """Stride, padding, dilation and groups of a convolution."""

    def __init__(self, base: nn.Conv2d) -> None:
        self.stride, self.dilation, self.groups = base.stride, base.dilation, base.groups
        is_zeros = base.padding_mode == "zeros"
        self.padding = base.padding if is_zeros else 0
        # other values than zeros are put around x first
        self.margins = [] if is_zeros else _margins(base)
        self.padding_mode = base.padding_mode

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution of x [B, in, H, W] with a kernel [out, in / groups, kh, kw], without a bias."""
        if self.margins:
            x = F.pad(x, self.margins, self.padding_mode)
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


def check_plain_conv(name: str, module: nn.Conv2d) -> None:
    """Refuse a convolution that pads or changes its weights in a way of its own. name: of the method"""
    if type(module) is QuantizedConv2d:
        return
    if type(module).forward is not nn.Conv2d.forward or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        raise PlanError(
            f"`{name}` cannot follow the padding or weights of a {type(module).__name__}. "
            f"Name its `weight` parameter instead."
        )


def _margins(base: nn.Conv2d) -> list[int]:
    """Return the padding of a convolution by other values than zeros: left, right, top and bottom."""
    sizes: list[int] = []
    for axis in (1, 0):
        whole = base.dilation[axis] * (base.kernel_size[axis] - 1)
        match base.padding:
            case "same":
                sizes += [whole // 2, whole - whole // 2]
            case "valid":
                sizes += [0, 0]
            case _:
                sizes += [int(base.padding[axis])] * 2
    return sizes
