"""The low-rank update in plain torch: the reference for every faster implementation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.lora.options import Factors, LoraOptions


def lora_add(y: Tensor, x: Tensor, factors: Factors, options: LoraOptions) -> Tensor:
    """Return `y + scale * (x a^T) b^T`, part by part, computed in y's precision. y: [..., out]; x: [..., in]."""
    a, b = factors.to(y.dtype)
    hidden = F.linear(F.dropout(x, options.dropout).to(y.dtype), a)  # [..., parts * r]
    updates = [
        options.scale * F.linear(h, part)
        for h, part in zip(hidden.chunk(options.parts, -1), b.chunk(options.parts), strict=True)
    ]
    pieces, column = [], 0
    for start, update in sorted(zip(options.column_offsets, updates, strict=True), key=lambda pair: pair[0]):
        end = start + update.shape[-1]
        pieces += [y[..., column:start], y[..., start:end] + update]
        column = end
    return torch.cat([*pieces, y[..., column:]], -1) if options.parts > 1 or column < y.shape[-1] else pieces[-1]
