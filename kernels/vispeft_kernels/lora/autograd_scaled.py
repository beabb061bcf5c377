"""The low-rank update with a scale on each feature about the bias, and its gradient: DoRA (Liu et al. 2024).

With `z = x W^T + c + s h b^T`, the result is `y' = c + g (z - c)`, and the gradient of the feature scale g is the sum
over rows of the incoming one times `z - c`. If the map widens (fused qkv, the first map of an MLP), y' is kept for it:
the next operation, attention or an activation, keeps it anyway. Elsewhere, as before a residual sum, and if y' was
written to, it is computed from the product `G = dy'^T x` of W's size: with `V = W + s b a`, the gradient of g is the
row sum of `G V`, elementwise. G gives those of a and b as well (except with dropout, where their x is another), and
`g V` that of x. So no more is kept than without the feature scale. Under `torch.compile` `scaled` follows `lora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.lora.autograd import Call, Inputs, Recompute, flat, forward, new_call
from vispeft_kernels.lora.dropout import blocks
from vispeft_kernels.lora.options import Factors, InputRows, Kept, LoraOptions
from vispeft_kernels.lora.torch_impl import expand_


def scaled(z: Tensor, feature_scale: Tensor, bias: Tensor | None, dim: int = -1) -> Tensor:
    """Return `c + g (z - c)`, a new tensor in z's precision, with one g and c per feature on dimension `dim` of z."""
    shape = [1] * z.ndim
    shape[dim] = -1
    return torch.addcmul(_offset(feature_scale, bias).view(shape), z, feature_scale.view(shape)).to(z.dtype)


def scaled_lora(
    inputs: Inputs, feature_scale: Tensor, options: LoraOptions, implementation: str, recompute: Recompute | None
) -> Tensor:
    """Return the update of y, scaled. y [..., out] is plain data that is overwritten; feature_scale: [out]."""
    assert inputs.y is not None
    call, source = new_call(inputs.x, options, implementation, recompute)
    result: Tensor = _ScaledLora.apply(call, source, feature_scale, *inputs.cast_x(inputs.y.dtype))
    return result


class _ScaledLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, source: Tensor | None, feature_scale: Tensor, *tensors: Tensor) -> Tensor:
        inputs = Inputs(*tensors)
        y, x, weight, bias, a, b = inputs
        assert y is not None
        assert weight is not None
        with torch.autocast(y.device.type, enabled=False):
            out, hidden = forward(inputs, call.options, call.implementation)
            rows = out.view(-1, y.shape[-1])
            torch.addcmul(_offset(feature_scale, bias), rows, feature_scale, out=rows)
        kept_out, is_dirty = None, out is y
        if ctx.needs_input_grad[2] and weight.shape[0] > weight.shape[1]:
            # not `out` itself: a later operation may write to it; that is no error, z is then computed again
            kept_out, ctx.watch = out.data, _Watch.on(out, int(is_dirty))
        if is_dirty:
            ctx.mark_dirty(y)
        ctx.save_for_backward(x if source is None else source, weight, bias, a, b, feature_scale, hidden, kept_out)
        ctx.call = call
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, a, b, feature_scale, hidden, out = ctx.saved_tensors
        needs_scale, _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad[2:7]
        options = ctx.call.options
        is_kept, grad_scale = out is not None and ctx.watch.is_unchanged, None
        with torch.autocast(grad.device.type, enabled=False):
            by_row, g = flat(grad), feature_scale.unsqueeze(1)
            rows = InputRows(flat(x), ctx.call.recompute, by_row.dtype)
            product = by_row.t() @ rows[:] if needs_weight or (needs_scale and not is_kept) else None
            if product is not None and not options.dropout:
                merged = _merged(weight, Factors(a, b).to(feature_scale.dtype), options)
                grad_scale = (product * merged).sum(1)
                grad_x = by_row @ merged.mul_(g).to(by_row.dtype) if needs_x else None
                grad_a, grad_b = _factor_gradients(g * product, Factors(a, b), options)
            else:
                # the scales go onto the small tensors: g W in place of a scaled gradient of the output's size
                on_b = torch.cat([g[start : start + b.shape[0] // options.parts] for start in options.column_offsets])
                base = (g * weight).to(by_row.dtype) if needs_x else weight
                factors = Factors(a.to(by_row.dtype), (on_b * b).to(by_row.dtype))
                grad_x, grad_a, grad_b = ctx.call.implementation.gradients(
                    by_row, Kept(rows, base, factors, hidden), options, needs_x
                )
                if needs_scale and is_kept:
                    grad_scale = _grad_scale_from_output(by_row, out.view(by_row.shape), feature_scale, bias)
                elif product is not None:
                    grad_scale = _grad_scale_from_gradients(product * weight, grad_b * b, feature_scale, options)
                grad_b = on_b * grad_b
        return (
            *(None, None, grad_scale, None),
            None if grad_x is None else grad_x.view(x.shape),
            (g * product).to(weight.dtype) if needs_weight else None,
            by_row.sum(0).to(bias.dtype) if needs_bias else None,
            grad_a.to(a.dtype),
            grad_b.to(b.dtype),
        )


@dataclass(frozen=True)
class _Watch:
    """Record of a tensor's count of writes, which does not keep the tensor alive.

    probe: a tensor without memory that shares the count
    """

    probe: Tensor
    version: int

    @classmethod
    def on(cls, tensor: Tensor, expected: int) -> _Watch:
        """Return a watch that starts now. expected: number of known writes that are still to come."""
        probe = tensor.view(-1)[:0]
        probe.set_(probe.new_empty(0).untyped_storage())
        # detached, or it would hold its base, which holds the graph that holds the watch
        probe = probe.detach()
        return cls(probe, probe._version + expected)

    @property
    def is_unchanged(self) -> bool:
        """True if there were no other writes."""
        return self.probe._version == self.version


def _offset(feature_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return `(1 - g) c`: exactly zero where the feature scale is one."""
    return torch.zeros_like(feature_scale) if bias is None else (1 - feature_scale) * bias


def _grad_scale_from_output(grad: Tensor, out: Tensor, feature_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return the gradient of the feature scale [N] with `z - c` from y'; zero where the scale is. grad, out: [M, N]."""
    total = torch.zeros_like(feature_scale)
    for block in blocks(grad):
        rows = out[block].to(feature_scale.dtype)
        rows = rows * grad[block] if bias is None else (rows - bias).mul_(grad[block])
        total += rows.sum(0)
    return torch.where(feature_scale == 0, 0, total / feature_scale)


def _grad_scale_from_gradients(on_weight: Tensor, on_b: Tensor, feature_scale: Tensor, options: LoraOptions) -> Tensor:
    """Return the gradient of the feature scale [N] from products of tensors with their gradients without the scale.

    on_weight: [N, K], of the frozen weight; on_b: [parts * n, r]
    """
    total = on_weight.sum(1, dtype=feature_scale.dtype)
    width = on_b.shape[0] // options.parts
    sums = on_b.sum(1, dtype=feature_scale.dtype).chunk(options.parts)
    for start, part in zip(options.column_offsets, sums, strict=True):
        total[start : start + width] += part
    return total


def _merged(weight: Tensor, factors: Factors, options: LoraOptions) -> Tensor:
    """Return `W + scale * b a` [N, K], a new tensor in the factors' precision."""
    merged = weight.to(factors.a.dtype, copy=True)
    expand_(merged.t(), factors.a.t(), factors.b, options)
    return merged


def _factor_gradients(grad: Tensor, factors: Factors, options: LoraOptions) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b from that of `W + scale * b a` [N, K]."""
    parts, width = options.parts, factors.b.shape[0] // options.parts
    rows = [options.scale * grad[start : start + width] for start in options.column_offsets]
    a_parts, b_parts = (one.chunk(parts) for one in factors.to(grad.dtype))
    return (
        torch.cat([part.t() @ row for part, row in zip(b_parts, rows, strict=True)]),
        torch.cat([row @ part.t() for part, row in zip(a_parts, rows, strict=True)]),
    )
