"""The low-rank update with a gain on each feature about the bias: what DoRA does (Liu et al. 2024).

With `z = x W^T + c + s h b^T`, the result is `y' = c + g (z - c)`, and the gradient of g is the sum over rows of the
incoming one times `z - c`. Where the map widens (fused qkv, the first map of an MLP), y' is kept for that: what comes
next, attention or an activation, keeps it anyway. Elsewhere, as before a residual sum, and where y' was written to, it
is taken from the product `G = dy'^T x` of W's size: with `V = W + s b a`, the gradient of g is the row sum of `G V`,
elementwise. G gives those of a and b as well (with dropout they see another x), and `g V` that of x. So nothing is kept
beyond what is kept without the gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.lora.autograd import Replay, Steps
from vispeft_kernels.lora.dropout import Seed, blocks
from vispeft_kernels.lora.torch_impl import Rows, Starts, expand_


def scaled(z: Tensor, gain: Tensor, bias: Tensor | None, dim: int = -1) -> Tensor:
    """`c + g (z - c)`, a new tensor in z's precision. gain, bias: one value per feature, on dimension `dim` of z."""
    shape = [1] * z.ndim
    shape[dim] = -1
    return torch.addcmul(_offset(gain, bias).view(shape), z, gain.view(shape)).to(z.dtype)


def scaled_lora(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    gain: Tensor,
    starts: Starts,
    dropout: float,
    replay: Replay | None,
    steps: Steps,
) -> Tensor:
    """The update of y, scaled. y is plain data that is overwritten; gain: [out]."""
    seed = steps.new_seed(x) if dropout else 0
    remake, source = (None, None) if replay is None else replay
    result: Tensor = _ScaledLora.apply(
        y, x, weight, bias, a, b, gain, source, seed, scale, starts, dropout, remake, steps
    )
    return result


class _ScaledLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        gain: Tensor,
        source: Tensor | None,
        seed: Seed,
        scale: float,
        starts: Starts,
        dropout: float,
        remake: Callable[[Tensor], Tensor] | None,
        steps: Steps,
    ) -> Tensor:
        kept_x = x.to(y.dtype)
        with torch.autocast(y.device.type, enabled=False):
            out = y if y.is_contiguous() else y.contiguous()
            flat, rows = out.view(-1, y.shape[-1]), kept_x.reshape(-1, x.shape[-1])
            hidden = steps.update_(flat, rows, a.to(y.dtype), b.to(y.dtype), scale, starts, dropout, seed)
            torch.addcmul(_offset(gain, bias), flat, gain, out=flat)
        kept_out, is_dirty = None, out is y
        if ctx.needs_input_grad[6] and weight.shape[0] > weight.shape[1]:
            # not `out` itself: what follows may write to it, which is then no error, but a reason to make z again
            kept_out, ctx.watch = out.data, _Watch.on(out, int(is_dirty))
        if is_dirty:
            ctx.mark_dirty(y)
        ctx.save_for_backward(kept_x if source is None else source, weight, bias, a, b, gain, hidden, kept_out)
        ctx.x_dtype, ctx.options, ctx.remake, ctx.steps = x.dtype, (scale, starts, dropout, seed), remake, steps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, a, b, gain, hidden, out = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias, _, _, needs_gain = ctx.needs_input_grad[:7]
        scale, starts, dropout, _ = ctx.options
        is_kept, grad_gain = out is not None and ctx.watch.is_whole, None
        with torch.autocast(grad.device.type, enabled=False):
            flat, by_row = grad.reshape(-1, grad.shape[-1]), gain.unsqueeze(1)
            rows = Rows(x.reshape(-1, x.shape[-1]), ctx.remake, flat.dtype)
            product = flat.t() @ rows[:] if needs_weight or (needs_gain and not is_kept) else None
            if product is not None and not dropout:
                merged = _merged(weight, a, b, gain.dtype, scale, starts)
                grad_gain = (product * merged).sum(1)
                grad_x = flat @ merged.mul_(by_row).to(flat.dtype) if needs_x else None
                grad_a, grad_b = _factor_gradients(by_row * product, a, b, scale, starts)
            else:
                # the gains go onto the small tensors: g W in place of a scaled gradient of the output's size
                on_b = torch.cat([by_row[start : start + b.shape[0] // len(starts)] for start in starts])
                base = (by_row * weight).to(flat.dtype) if needs_x else weight
                factors = a.to(flat.dtype), (on_b * b).to(flat.dtype)
                grad_x, grad_a, grad_b = ctx.steps.gradients(flat, rows, base, hidden, *factors, *ctx.options, needs_x)
                if needs_gain and is_kept:
                    grad_gain = _gain_from_output(flat, out.view(flat.shape), gain, bias)
                elif product is not None:
                    grad_gain = _gain_from_gradients(product, weight, grad_b, b, gain.dtype, starts)
                grad_b = on_b * grad_b
        return (
            None,
            None if grad_x is None else grad_x.view(x.shape).to(ctx.x_dtype),
            (by_row * product).to(weight.dtype) if needs_weight else None,
            flat.sum(0).to(bias.dtype) if needs_bias else None,
            grad_a.to(a.dtype),
            grad_b.to(b.dtype),
            grad_gain,
            *(None,) * 7,
        )


@dataclass(frozen=True)
class _Watch:
    """Tells whether a tensor was written to, without keeping it.

    probe: shares the tensor's count of writes, but has no memory
    """

    probe: Tensor
    version: int

    @classmethod
    def on(cls, tensor: Tensor, coming: int) -> _Watch:
        """A watch from now on. coming: how many writes more are known of."""
        probe = tensor.view(-1)[:0]
        probe.set_(probe.new_empty(0).untyped_storage())
        # detached, or it would hold its base, which holds the graph that holds the watch
        probe = probe.detach()
        return cls(probe, probe._version + coming)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was written."""
        return self.probe._version == self.version


def _offset(gain: Tensor, bias: Tensor | None) -> Tensor:
    """`(1 - g) c`: zero to the bit where the gain is one."""
    return torch.zeros_like(gain) if bias is None else (1 - gain) * bias


def _gain_from_output(grad: Tensor, out: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Gradient of the gain [N], with `z - c` taken from y'; zero where the gain is. grad, out: [M, N]."""
    total = torch.zeros_like(gain)
    for block in blocks(grad):
        rows = out[block].to(gain.dtype)
        rows = rows * grad[block] if bias is None else (rows - bias).mul_(grad[block])
        total += rows.sum(0)
    return torch.where(gain == 0, 0, total / gain)


def _gain_from_gradients(
    product: Tensor, weight: Tensor, grad_b: Tensor, b: Tensor, dtype: torch.dtype, starts: Starts
) -> Tensor:
    """Gradient of the gain [N] in `dtype`: row by row, weights times the gradients they would have without gains."""
    total = (product * weight).sum(1, dtype=dtype)
    width = b.shape[0] // len(starts)
    for start, share in zip(starts, (grad_b * b).sum(1, dtype=dtype).chunk(len(starts)), strict=True):
        total[start : start + width] += share
    return total


def _merged(weight: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, scale: float, starts: Starts) -> Tensor:
    """`W + scale * b a` [N, K], a new tensor in `dtype`."""
    merged = weight.to(dtype, copy=True)
    expand_(merged.t(), a.to(dtype).t(), b.to(dtype), scale, starts)
    return merged


def _factor_gradients(grad: Tensor, a: Tensor, b: Tensor, scale: float, starts: Starts) -> tuple[Tensor, Tensor]:
    """Gradients of a and b from that of `W + scale * b a` [N, K]."""
    width, parts = b.shape[0] // len(starts), len(starts)
    rows = [scale * grad[start : start + width] for start in starts]
    a_parts, b_parts = a.to(grad.dtype).chunk(parts), b.to(grad.dtype).chunk(parts)
    return (
        torch.cat([part.t() @ row for part, row in zip(b_parts, rows, strict=True)]),
        torch.cat([row @ part.t() for part, row in zip(a_parts, rows, strict=True)]),
    )
