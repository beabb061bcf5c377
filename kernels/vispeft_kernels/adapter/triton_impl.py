"""The bottleneck adapter by Triton's kernels: the same steps as `torch_impl.py` takes in torch, on rows [M, *]."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from vispeft_kernels.adapter import configs
from vispeft_kernels.adapter.torch_impl import Gradients, Maps
from vispeft_kernels.launch import ceil_div, computable, precision, rows_of, start


def forward(y: Tensor, x: Tensor, maps: Maps, activation: str, scale: float) -> tuple[Tensor, Tensor]:
    """`y + scale * up(act(down(x)))` [M, out] and z = down(x) [M, width], in one kernel."""
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
            stream.stride(0), rows.stride(0), scale,
        ),
        {"ACTIVATION": activation, "PRECISION": precision(stream.dtype)},
        config,
    )  # fmt: skip
    return out.to(y.dtype), z.to(y.dtype)


def backward(
    grad: Tensor,
    x: Tensor,
    z: Tensor,
    down_w: Tensor,
    up_w: Tensor,
    activation: str,
    scale: float,
    is_sequential: bool,
    needs_x: bool,
) -> Gradients:
    """One kernel for the gradients of z and x; the weights' are two thin products, one of which sums grad too."""
    grads, kept = computable(rows_of(grad)), computable(z.contiguous())
    down, up = computable(down_w.contiguous()), computable(up_w.contiguous())
    (rows, width), inputs, outputs = kept.shape, down.shape[1], up.shape[0]
    grad_z = torch.empty_like(kept)
    hidden = torch.empty(rows, width + configs.ONES, dtype=kept.dtype, device=kept.device)
    grad_x = torch.empty(rows if needs_x else 0, inputs, dtype=kept.dtype, device=kept.device)
    config = configs.backward(width, kept.dtype)
    start(
        _kernels().adapter_bwd_kernel,
        (ceil_div(rows, config.blocks["BLOCK_M"]),),
        (
            grads, kept, down, up, grad_x, grad_z, hidden, rows, inputs, outputs, width, grads.stride(0),
            hidden.stride(0), scale,
        ),
        {
            "ACTIVATION": activation, "SEQUENTIAL": is_sequential, "NEEDS_X": needs_x, "ONES": configs.ONES,
            "PRECISION": precision(kept.dtype),
        },
        config,
    )  # fmt: skip
    grad_up = (grads.t() @ hidden).mul_(scale)
    grad_down = grad_z.t() @ computable(rows_of(x))
    return Gradients(
        grad_x.to(x.dtype) if needs_x else None,
        grad_down,
        grad_z.sum(0),
        grad_up[:, :width],
        grad_up[:, width].clone(),
    )


def _kernels() -> ModuleType:
    """The device code; only here is triton imported."""
    from vispeft_kernels.adapter import triton_kernels

    return triton_kernels
