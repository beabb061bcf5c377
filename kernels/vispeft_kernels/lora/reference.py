"""The truth of the low-rank update in plain torch; what every faster implementation is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, starts: Sequence[int], dropout: float) -> Tensor:
    """`y + scale * (x a^T) b^T`, part by part; computed in y's precision. Shapes: see the package."""
    hidden = F.linear(F.dropout(x, dropout).to(y.dtype), a.to(y.dtype))  # [..., parts * r]
    updates = [
        scale * F.linear(h, part)
        for h, part in zip(hidden.chunk(len(starts), -1), b.to(y.dtype).chunk(len(starts)), strict=True)
    ]
    pieces, column = [], 0
    for start, update in sorted(zip(starts, updates, strict=True), key=lambda pair: pair[0]):
        end = start + update.shape[-1]
        pieces += [y[..., column:start], y[..., start:end] + update]
        column = end
    return torch.cat([*pieces, y[..., column:]], -1) if len(starts) > 1 or column < y.shape[-1] else pieces[-1]
