"""Deformable attention by Triton's kernels, from locations and weights or from offsets and logits."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from vispeft_kernels.deformable import configs
from vispeft_kernels.deformable.padded_levels import Shapes
from vispeft_kernels.deformable.samples import Samples
from vispeft_kernels.deformable.torch_impl import Gradients
from vispeft_kernels.launch import ceil_div, computable, is_interpreted, start


def forward(value: Tensor, shapes: Shapes, samples: Samples) -> Tensor:
    """Return the sum of all weighted samples, [B, Q, heads * dim] in the dtype of `value` [B, S, heads, dim]."""
    batch, queries, heads, levels, points, _ = samples.sampling_locations.shape
    pixels = _rows(value)
    dim = value.shape[3]
    out = torch.empty(batch, queries, heads, dim, dtype=pixels.dtype, device=value.device)
    config = configs.forward(dim, samples.size, samples.mode > 0, is_interpreted())
    start(
        _kernels().deformable_fwd_kernel,
        (ceil_div(queries, config.blocks["BLOCK_Q"]), heads, batch),
        (
            pixels, _levels(shapes, value.device), *_arguments(samples), out, queries, heads, levels, points, dim,
            *pixels.stride()[:3], samples.reference_stride,
        ),
        {"REFERENCE": samples.mode},
        config,
    )  # fmt: skip
    return out.flatten(2).to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, samples: Samples, needs_value: bool, needs_points: bool
) -> Gradients:
    """Return the gradients of `forward` that belong to grad [B, Q, heads * dim]; empty where not needed.

    The gradient of the values is summed atomically in float32. If torch asks for deterministic algorithms, corners are
    sorted by row and each row is summed in order instead.
    """
    batch, queries, heads, levels, points, _ = samples.sampling_locations.shape
    pixels, grads = _rows(value), computable(grad.contiguous())
    dim = value.shape[3]
    by_atomics = needs_value and not torch.are_deterministic_algorithms_enabled()
    sums = torch.zeros(value.shape if by_atomics else (0,), dtype=torch.float32, device=value.device)
    arguments = _arguments(samples)
    grad_locations, grad_weights = (
        torch.empty(one.shape if needs_points else (0,), dtype=one.dtype, device=one.device)
        for one in arguments[:2]
        if one is not None
    )
    config = configs.backward(dim, samples.size, samples.mode > 0, is_interpreted())
    grid = ceil_div(queries, config.blocks["BLOCK_Q"]), heads, batch
    start(
        _kernels().deformable_bwd_kernel,
        grid if by_atomics or needs_points else (0,),
        (
            grads, pixels, _levels(shapes, value.device), *arguments, sums, grad_locations, grad_weights, queries,
            heads, levels, points, dim, value.shape[1], *pixels.stride()[:3], samples.reference_stride,
        ),
        {"NEEDS_VALUE": by_atomics, "NEEDS_POINTS": needs_points, "REFERENCE": samples.mode},
        config,
    )  # fmt: skip
    if needs_value and not by_atomics:
        sums = _sum_in_order(grads, value, shapes, samples)
    return Gradients(
        sums.to(value.dtype),
        grad_locations.to(samples.sampling_locations.dtype),
        grad_weights.to(samples.attention_weights.dtype),
    )


def _sum_in_order(grad: Tensor, value: Tensor, shapes: Shapes, samples: Samples) -> Tensor:
    """Return the gradient of value [B, S, heads, dim], float32, reproducible to the bit."""
    batch, queries, heads, levels, points, _ = samples.sampling_locations.shape
    num_rows, dim = value.shape[:3].numel(), value.shape[3]
    rows = torch.empty(*samples.attention_weights.shape, 4, dtype=torch.int64, device=value.device)
    weights = torch.empty(*samples.attention_weights.shape, 4, dtype=torch.float32, device=value.device)
    config = configs.corners(samples.size)
    start(
        _kernels().deformable_corners_kernel,
        (ceil_div(queries, config.blocks["BLOCK_Q"]), heads, batch),
        (
            _levels(shapes, value.device), *_arguments(samples), rows, weights, queries, heads, levels, points,
            value.shape[1], num_rows, samples.reference_stride,
        ),
        {"REFERENCE": samples.mode},
        config,
    )  # fmt: skip
    ordered, order = torch.sort(rows.view(-1), stable=True)
    ends = torch.searchsorted(ordered, torch.arange(num_rows + 1, device=value.device))
    sums = torch.empty(value.shape, dtype=torch.float32, device=value.device)
    start(
        _kernels().deformable_gather_kernel,
        (num_rows,),
        (grad, order, weights, ends, sums, 4 * samples.size),
        {"DIM": dim},
        configs.gather(),
    )
    return sums


def _rows(value: Tensor) -> Tensor:
    """Return the values with contiguous channels, in a dtype that the kernels can compute in."""
    return computable(value if value.stride(3) == 1 else value.contiguous())


def _arguments(samples: Samples) -> list[Tensor | None]:
    """Return the tensors of samples as the kernels take them."""
    tensors = samples.sampling_locations, samples.attention_weights, samples.reference_points
    return [None if tensor is None else computable(tensor.contiguous()) for tensor in tensors]


@lru_cache(maxsize=64)
def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """Return [levels, 3], int32: height, width, and first pixel."""
    firsts = [sum(height * width for height, width in shapes[:index]) for index in range(len(shapes))]
    rows = [(height, width, first) for (height, width), first in zip(shapes, firsts, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _kernels() -> ModuleType:
    """Import the device code. Only this needs triton."""
    from vispeft_kernels.deformable import triton_kernels

    return triton_kernels
