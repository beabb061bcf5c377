"""The bottleneck adapter in plain torch: the reference for every faster implementation."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.adapter.options import AdapterOptions, Maps

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def bottleneck_add(y: Tensor, x: Tensor, maps: Maps, options: AdapterOptions) -> Tensor:
    """Return `y + scale * up(act(down(x)))`, computed in y's precision. y: [..., out]; x: [..., in]."""
    down_w, down_b, up_w, up_b = maps.to(y.dtype)
    z = F.linear(x.to(y.dtype), down_w, down_b)  # [..., width]
    return y + options.scale * F.linear(ACTIVATIONS[options.activation](z), up_w, up_b)
