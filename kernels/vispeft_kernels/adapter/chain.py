"""Adapters one after the other, in one pass over the stream.

With `H = [h_1 ... h_n]`, `D` and `U` all adapters' maps side by side, adapter k's input is `x + s (sum over j < k of
h_j U_j^T + u_j)`, so `z_k = (x D_k^T + d_k) + s (sum over j < k of h_j (D_k U_j)^T + D_k u_j)`: the products `D_k U_j`
are small, and the stream is read once for all `x D^T` and once for the output. The backward pass is the same in
reverse. Only x and all z are kept; separate adapters would keep the stream before each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.adapter.options import AdapterOptions, Maps
from vispeft_kernels.adapter.reference import ACTIVATIONS
from vispeft_kernels.adapter.torch_impl import GRADIENTS
from vispeft_kernels.fresh import reshaped


def bottleneck_chain(x: Tensor, maps: Maps, options: AdapterOptions) -> Tensor:
    """Return the output of n adapters, one after the other, on x.

    down_w: [n, width, C]; down_b: [n, width]; up_w: [n, C, width]; up_b: [n, C]
    """
    result: Tensor = _Chain.apply(options, x, *maps)
    return result


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: AdapterOptions, x: Tensor, *maps: Tensor) -> Tensor:
        (down_w, down_b, up_w, up_b), scale = maps, options.scale
        count, width, _ = down_w.shape
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1])
            down, up = _side_by_side(down_w, up_w, x.dtype)
            inner = down @ up  # [n * width, n * width]
            before = _before(up_b.to(x.dtype))  # sums of the earlier adapters' biases, without the scale
            offsets = down_b.to(x.dtype) + scale * torch.einsum("nwc,nc->nw", down_w.to(x.dtype), before)
            z = torch.addmm(offsets.flatten(), rows, down.t())  # [M, n * width]
            hidden = torch.empty_like(z)
            for k in range(count):
                here, earlier = slice(k * width, (k + 1) * width), slice(0, k * width)
                if k:
                    z[:, here].addmm_(hidden[:, earlier], inner[here, earlier].t(), alpha=scale)
                hidden[:, here] = ACTIVATIONS[options.activation](z[:, here])
            out = torch.add(rows, up_b.to(x.dtype).sum(0), alpha=scale)
            out.addmm_(hidden, up.t(), alpha=scale)
        ctx.save_for_backward(x, z, down_w, up_w, up_b)
        ctx.options, ctx.down_b_dtype = options, down_b.dtype
        return reshaped(out, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, z, down_w, up_w, up_b = ctx.saved_tensors
        count, width, channels = down_w.shape
        scale, dtype = ctx.options.scale, grad.dtype
        with torch.autocast(grad.device.type, enabled=False):
            rows, flat = x.reshape(-1, channels).to(dtype), grad.reshape(-1, channels)
            down, up = _side_by_side(down_w, up_w, dtype)
            hidden = ACTIVATIONS[ctx.options.activation](z)
            grad_z = _grad_z(flat, z, (down, up), count, ctx.options)
            # for each pair of adapters, the product of the later gradient and the earlier hidden state
            pairs = (grad_z.t() @ hidden).view(count, width, count, width)
            later = torch.ones(count, count, dtype=dtype, device=grad.device).tril(-1)
            pairs = (pairs * later[:, None, :, None]).view(count * width, -1)
            sums, total = grad_z.sum(0).view(count, width), flat.sum(0)
            grad_up = (flat.t() @ hidden + down.t() @ pairs).mul_(scale)  # [C, n * width]
            grad_down = (grad_z.t() @ rows).addmm_(pairs, up.t(), alpha=scale)  # [n * width, C]
            grad_down = grad_down.view(count, width, channels)
            grad_down += scale * sums[:, :, None] * _before(up_b.to(dtype))[:, None, :]
            through = torch.einsum("nw,nwc->nc", sums, down.view(count, width, channels))
            grad_up_b = scale * (total + later.t() @ through)
            grad_x = torch.addmm(flat, grad_z, down) if ctx.needs_input_grad[1] else None
        return (
            None,
            None if grad_x is None else grad_x.view(x.shape).to(x.dtype),
            grad_down.to(down_w.dtype),
            sums.to(ctx.down_b_dtype),
            grad_up.view(channels, count, width).transpose(0, 1).to(up_w.dtype),
            grad_up_b.to(up_b.dtype),
        )


def _side_by_side(down_w: Tensor, up_w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return all adapters' maps as two: [n * width, C] and [C, n * width]."""
    return down_w.flatten(0, 1).to(dtype), up_w.to(dtype).transpose(0, 1).flatten(1)


def _before(up_b: Tensor) -> Tensor:
    """Return the sum of the biases [n, C] of all adapters before each one."""
    return up_b.cumsum(0) - up_b


def _grad_z(grad: Tensor, z: Tensor, maps: tuple[Tensor, Tensor], count: int, options: AdapterOptions) -> Tensor:
    """Return the gradients of all z [M, n * width], from the last adapter to the first. maps: side by side."""
    (down, up), width = maps, z.shape[1] // count
    grad_hidden, inner = (grad @ up).mul_(options.scale), down @ up
    grad_z = torch.empty_like(z)
    for k in reversed(range(count)):
        here, later = slice(k * width, (k + 1) * width), slice((k + 1) * width, None)
        if k + 1 < count:
            grad_hidden[:, here].addmm_(grad_z[:, later], inner[later, here], alpha=options.scale)
        grad_z[:, here] = GRADIENTS[options.activation](grad_hidden[:, here], z[:, here])
    return grad_z
