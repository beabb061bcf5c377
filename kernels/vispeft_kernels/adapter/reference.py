"""The truth of the bottleneck adapter in plain torch; what every faster implementation is compared with."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def bottleneck_add(
    y: Tensor,
    x: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    activation: str,
    scale: float,
) -> Tensor:
    """`y + scale * up(act(down(x)))`, computed in y's precision."""
    z = F.linear(x.to(y.dtype), down_w.to(y.dtype), down_b.to(y.dtype))  # [..., width]
    hidden = ACTIVATIONS[activation](z)
    return y + scale * F.linear(hidden, up_w.to(y.dtype), up_b.to(y.dtype))
