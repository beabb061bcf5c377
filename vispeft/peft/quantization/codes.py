"""Codes of a weight in 8 and 4 bits, and the values that they stand for.

8 bits: `W = scale * code` with a code from -127 to 127 and `scale = max |W| / 127` for each row, an output.
4 bits: NormalFloat (Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314, section 3):
`W = scale * level[code]` with `scale = max |W|` for each block of 64 successive values; the scales are not quantised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# values that share a scale in 4 bits
BLOCK = 64

_LARGEST = 127

# QLoRA, appendix E: quantiles of a normal distribution, scaled to [-1, 1], with an exact zero
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@torch.no_grad()
def encode(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of a weight [out, ...], the scales in its precision.

    8 bits: codes int8 [out, ...], scales [out, 1, ...]; 4 bits: codes uint8 [blocks * 32], two of them in each, scales
    [blocks]
    """
    return _encode_rows(weight) if bits == 8 else _encode_blocks(weight)


def decode(codes: Tensor, scales: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the weight that codes and scales stand for, in the precision of the scales."""
    if bits == 8:
        return codes.to(scales.dtype).mul_(scales)
    levels = torch.tensor(LEVELS, dtype=scales.dtype, device=scales.device)
    # both levels of every byte, so that one look-up serves two values
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    values = pairs.index_select(0, codes.int()).view(-1, BLOCK).mul_(scales[:, None]).view(-1)
    return values[: torch.Size(shape).numel()].view(*shape)


def _encode_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    largest = weight.float().flatten(1).abs().amax(1).view(-1, *(1 for _ in weight.shape[1:]))
    # by the scales as they are kept, which a half precision rounds
    scales = (largest / _LARGEST).to(weight.dtype)
    divisor = torch.where(scales == 0, 1, scales.float())
    return (weight.float() / divisor).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def _encode_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    flat = weight.float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1).to(weight.dtype)
    divisor = torch.where(scales == 0, 1, scales.float())
    levels = torch.tensor(LEVELS, device=weight.device)
    codes = torch.bucketize(blocks / divisor[:, None], (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales
