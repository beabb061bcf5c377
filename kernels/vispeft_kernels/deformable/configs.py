"""Block sizes of deformable attention's kernels by channels of a head.

A thread has eight channels, 16 bytes in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vispeft_kernels.launch import LARGEST_REGISTERS, Config

LARGEST_DIM = 256
LARGEST_SAMPLES = 512  # of a query in one head, where their softmax is taken in the kernel


def _block(size: int) -> int:
    return 1 << (size - 1).bit_length()


def forward(dim: int, samples: int, has_reference: bool, is_interpreted: bool = False) -> Config:
    """Configuration of `deformable_fwd_kernel`. samples: levels * points.

    In the interpreter programs are large, since starting one costs more than its work.
    """
    warps = 4 if has_reference else 2
    return _per_query(dim, samples, warps, 256 * warps, 1024 if has_reference else None, is_interpreted)


def backward(dim: int, samples: int, has_reference: bool, is_interpreted: bool = False) -> Config:
    """Configuration of `deformable_bwd_kernel`; with a reference it has twice the threads, for the softmax."""
    return _per_query(dim, samples, 1 + has_reference, 256, 256 if has_reference else None, is_interpreted)


def _per_query(dim: int, samples: int, warps: int, elements: int, logits: int | None, is_interpreted: bool) -> Config:
    """Configuration with as many queries as fit.

    elements: the most of a block's channels; logits: the most of a block's samples, if their softmax is taken
    """
    channels, block = max(8, _block(dim)), _block(samples)
    queries = elements // channels if logits is None else min(elements // channels, logits // block)
    queries = 64 if is_interpreted else max(1, queries)
    return Config({"BLOCK_Q": queries, "BLOCK_D": channels, "BLOCK_S": block}, warps, 1, LARGEST_REGISTERS)


def corners(samples: int) -> Config:
    """Configuration of `deformable_corners_kernel`."""
    block = _block(samples)
    return Config({"BLOCK_Q": max(4, min(64, 1024 // block)), "BLOCK_S": block}, 2, 1)


def gather() -> Config:
    """Configuration of `deformable_gather_kernel`, which derives its blocks from the channels of a head."""
    return Config({}, 1, 1)


def every_configuration(arch: int) -> Iterator[tuple[str, torch.dtype, Config, dict[str, Any]]]:
    """Each kernel of this operation with each configuration and each set of constants, on any `arch`."""
    for dtype in (torch.bfloat16, torch.float32):
        for dim, samples in ((8, 16), (16, 16), (32, 16), (64, 16), (128, 16), (256, 16), (32, 64), (8, 512)):
            for reference in (0, 2, 4) if dim in (8, 32) else (0,):
                yield "deformable_fwd_kernel", dtype, forward(dim, samples, reference > 0), {"REFERENCE": reference}
                for value, points in ((True, True), (False, True), (True, False)):
                    work = {"REFERENCE": reference, "NEEDS_VALUE": value, "NEEDS_POINTS": points}
                    yield "deformable_bwd_kernel", dtype, backward(dim, samples, reference > 0), work
            yield "deformable_gather_kernel", dtype, gather(), {"DIM": dim}
    for samples in (16, 64, 512):
        for reference in (0, 2, 4):
            yield "deformable_corners_kernel", torch.float32, corners(samples), {"REFERENCE": reference}
