"""Block sizes of the bottleneck adapter's kernels by precision and width of the bottleneck."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vispeft_kernels.launch import Config, padded

LARGEST_WIDTH = 512
ONES = 8  # columns behind the hidden state, the first of them ones: 16 bytes keep the rows aligned

# by padded width: rows, columns at a time, warps, stages
Sizes = dict[int, tuple[int, int, int, int]]
HALF_FORWARD: Sizes = {64: (64, 64, 4, 3), 128: (64, 64, 8, 3), 256: (64, 32, 8, 3), 512: (32, 32, 8, 2)}
HALF_BACKWARD: Sizes = {64: (64, 64, 4, 3), 128: (64, 64, 8, 3), 256: (32, 64, 8, 2), 512: (16, 32, 8, 2)}
SINGLE: Sizes = {64: (32, 32, 4, 2), 128: (32, 32, 8, 2), 256: (16, 16, 16, 1), 512: (16, 16, 8, 1)}


def forward(width: int, dtype: torch.dtype) -> Config:
    """Configuration of `adapter_fwd_kernel`."""
    return _of_width(HALF_FORWARD if dtype.itemsize == 2 else SINGLE, width)


def backward(width: int, dtype: torch.dtype) -> Config:
    """Configuration of `adapter_bwd_kernel`.

    It has fewer rows: z, its gradient and the hidden state are in registers at the same time.
    """
    return _of_width(HALF_BACKWARD if dtype.itemsize == 2 else SINGLE, width)


def _of_width(sizes: Sizes, width: int) -> Config:
    block = padded(width)
    m, k, warps, stages = sizes[max(64, block)]
    return Config({"BLOCK_M": m, "BLOCK_K": k, "BLOCK_W": block}, warps, stages)


def every_configuration(arch: int) -> Iterator[tuple[str, torch.dtype, Config, dict[str, Any]]]:
    """Each kernel of this operation with each configuration and each set of constants, on any `arch`."""
    for dtype in (torch.bfloat16, torch.float32):
        for width in (16, 32, 64, 128, 256, 512):
            for activation in ("gelu", "relu", "silu") if width == 64 else ("gelu",):
                work = {"ACTIVATION": activation, "PRECISION": "ieee"}
                yield "adapter_fwd_kernel", dtype, forward(width, dtype), work
                for sequential in (True, False):
                    both = {**work, "SEQUENTIAL": sequential, "NEEDS_X": True, "ONES": ONES}
                    yield "adapter_bwd_kernel", dtype, backward(width, dtype), both
