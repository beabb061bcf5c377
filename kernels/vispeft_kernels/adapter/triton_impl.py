"""The bottleneck adapter by Triton's kernels, on rows [M, *]. `torch_impl.py` has the same functions."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from vispeft_kernels.adapter import configs
from vispeft_kernels.adapter.options import AdapterOptions, Gradients, Kept, Maps
from vispeft_kernels.launch import ceil_div, computable, precision, rows_of, start


def forward(y: Tensor, x: Tensor, maps: Maps, options: AdapterOptions) -> tuple[Tensor, Tensor]:
    """Return `y + scale * up(act(down(x)))` [M, out] and z = down(x) [M, width], in one kernel."""
    stream, rows = computable(rows_of(y)), computable(rows_of(x))
    width = maps.down_w.shape[0]
    out = torch.empty(stream.shape, dtype=stream.dtype, device=x.device)
    z = torch.empty(rows.shape[0], width, dtype=stream.dtype, device=x.device)
    config = configs.forward(width, stream.dtype)
    start(
        _kernels().adapter_fwd_kernel,
        (ceil_div(rows.shape[0], config.blocks["BLOCK_M"]),),
        (
            stream, rows, *(computable(one.contiguous()) for one in maps), out, z, *rows.shape, stream.shape[1], width,
            stream.stride(0), rows.stride(0), options.scale,
        ),
        {"ACTIVATION": options.activation, "PRECISION": precision(stream.dtype)},
        config,
    )  # fmt: skip
    return out.to(y.dtype), z.to(y.dtype)


def backward(grad: Tensor, kept: Kept, options: AdapterOptions, needs_x: bool) -> Gradients:
    """Return the gradients that belong to grad [M, out].

    One kernel computes those of z and x. Those of the weights are two thin products, one of which also sums grad.
    """
    grads, z = computable(rows_of(grad)), computable(kept.z.contiguous())
    down, up = computable(kept.down_w.contiguous()), computable(kept.up_w.contiguous())
    (rows, width), inputs, outputs = z.shape, down.shape[1], up.shape[0]
    grad_z = torch.empty_like(z)
    hidden = z.new_empty(rows, width + configs.ONES)
    grad_x = z.new_empty(rows if needs_x else 0, inputs)
    config = configs.backward(width, z.dtype)
    start(
        _kernels().adapter_bwd_kernel,
        (ceil_div(rows, config.blocks["BLOCK_M"]),),
        (
            grads, z, down, up, grad_x, grad_z, hidden, rows, inputs, outputs, width, grads.stride(0),
            hidden.stride(0), options.scale,
        ),
        {
            "ACTIVATION": options.activation, "SEQUENTIAL": kept.is_sequential, "NEEDS_X": needs_x,
            "ONES": configs.ONES, "PRECISION": precision(z.dtype),
        },
        config,
    )  # fmt: skip
    grad_up = (grads.t() @ hidden).mul_(options.scale)
    grad_down = grad_z.t() @ computable(rows_of(kept.x))
    return Gradients(
        grad_x.to(kept.x.dtype) if needs_x else None,
        grad_down,
        grad_z.sum(0),
        grad_up[:, :width],
        grad_up[:, width].clone(),
    )


def _kernels() -> ModuleType:
    """Import the device code. Only this needs triton."""
    from vispeft_kernels.adapter import triton_kernels

    return triton_kernels
