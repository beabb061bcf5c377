"""The bottleneck adapter with a hand-written gradient, shared by eager mode and `torch.compile`.

`forward` and `gradients` hold all of the arithmetic around an implementation. An autograd function runs them in eager
mode. The operator `vispeft::bottleneck` runs them as one node of a compiled or exported graph. Kept for backward: x,
which is the frozen map's output and which no other module keeps, and z = down(x) of bottleneck size. The activation is
recomputed. No other tensor of the output's size is made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.adapter import torch_impl, triton_impl
from vispeft_kernels.adapter.options import AdapterOptions, Gradients, Kept, Maps
from vispeft_kernels.fresh import reshaped


class Implementation(Protocol):
    """Functions on rows that `torch_impl.py` has in torch and `triton_impl.py` in Triton."""

    def forward(self, y: Tensor, x: Tensor, maps: Maps, options: AdapterOptions) -> tuple[Tensor, Tensor]:
        """Return `y + scale * up(act(down(x)))` [M, out], a new tensor, and z = down(x) [M, width]."""

    def backward(self, grad: Tensor, kept: Kept, options: AdapterOptions, needs_x: bool) -> Gradients:
        """Return the gradients that belong to grad [M, out]."""


IMPLEMENTATIONS: dict[str, Implementation] = {"torch": torch_impl, "triton": triton_impl}


def bottleneck_add(y: Tensor, x: Tensor, maps: Maps, options: AdapterOptions, implementation: str) -> Tensor:
    """Return `y + scale * up(act(down(x)))`, in y's precision, by one of `IMPLEMENTATIONS`; y may be x itself."""
    stream, x = None if y is x else y, x.to(y.dtype)
    if torch.compiler.is_compiling():
        out: Tensor = bottleneck_op(stream, x, *maps, options.activation, options.scale, implementation)[0]
        return out
    result: Tensor = _Bottleneck.apply(options, implementation, stream, x, *maps)
    return result


def forward(
    y: Tensor | None, x: Tensor, maps: Maps, options: AdapterOptions, implementation: str
) -> tuple[Tensor, Tensor]:
    """Return the output [..., out] and z [M, width]. Without a y the stream is x itself."""
    stream = x if y is None else y
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = x.reshape(-1, x.shape[-1]), stream.shape[-1]
        chosen = IMPLEMENTATIONS[implementation]
        out, z = chosen.forward(stream.reshape(-1, columns), rows, maps.to(x.dtype), options)
    return reshaped(out, stream.shape), z


def gradients(grad: Tensor, kept: Kept, options: AdapterOptions, implementation: str, needs_x: bool) -> Gradients:
    """Return the gradients that belong to grad [..., out]; those of the weights in the weights' precision."""
    with torch.autocast(grad.device.type, enabled=False):
        rows, flat = kept.x.reshape(-1, kept.x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        cast = replace(kept, x=rows, down_w=kept.down_w.to(grad.dtype), up_w=kept.up_w.to(grad.dtype))
        grads = IMPLEMENTATIONS[implementation].backward(flat, cast, options, needs_x)
    grad_x = None if grads.x is None else grads.x.view(kept.x.shape)
    return grads._replace(x=grad_x, down_w=grads.down_w.to(kept.down_w.dtype), up_w=grads.up_w.to(kept.up_w.dtype))


def _keep(ctx: Any, inputs: tuple[Any, ...], z: Tensor) -> None:
    """Save tensors and dtypes for the backward pass of either form. inputs: y, x and the maps."""
    y, x, down_w, down_b, up_w, up_b = inputs
    ctx.save_for_backward(x, z, down_w, up_w)
    ctx.is_sequential, ctx.bias_dtypes = y is None, (down_b.dtype, up_b.dtype)


def _input_gradients(ctx: Any, grad: Tensor, grads: Gradients) -> tuple[Tensor | None, ...]:
    """Return the gradients of y, x and the maps."""
    down_dtype, up_dtype = ctx.bias_dtypes
    grad_x, down_w, down_b, up_w, up_b = grads
    return None if ctx.is_sequential else grad, grad_x, down_w, down_b.to(down_dtype), up_w, up_b.to(up_dtype)


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: AdapterOptions, implementation: str, *tensors: Tensor) -> Tensor:
        y, x, *maps = tensors
        out, z = forward(y, x, Maps(*maps), options, implementation)
        _keep(ctx, tensors, z)
        ctx.options = options, implementation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, z, down_w, up_w), (options, implementation) = ctx.saved_tensors, ctx.options
        kept = Kept(x, z, down_w, up_w, ctx.is_sequential)
        grads = gradients(grad, kept, options, implementation, ctx.needs_input_grad[3])
        return None, None, *_input_gradients(ctx, grad, grads)


# operators take flat arguments: only the functions from here on pack and unpack them
_DEVICES = ("cpu", "cuda")


def _run_forward(y: Tensor | None, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return the output [..., out] and z [M, width]."""
    *maps, activation, scale, implementation = args
    return forward(y, x, Maps(*maps), AdapterOptions(activation, scale), implementation)


def _run_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x (empty where not needed) and the maps."""
    *kept, activation, scale, implementation, needs_x = args
    grads = gradients(grad, Kept(*kept), AdapterOptions(activation, scale), implementation, needs_x)
    grad_x = grad.new_empty(0) if grads.x is None else grads.x
    down_b, up_b = grads.down_b.to(grad.dtype), grads.up_b.to(grad.dtype)
    return grad_x, grads.down_w, down_b, grads.up_w.contiguous(), up_b.contiguous()


bottleneck_op = torch.library.custom_op(
    "vispeft::bottleneck",
    _run_forward,
    mutates_args=(),
    device_types=_DEVICES,
    schema="(Tensor? y, Tensor x, Tensor down_w, Tensor down_b, Tensor up_w, Tensor up_b, str activation, float scale, "
    "str implementation) -> (Tensor, Tensor)",
)
bottleneck_backward_op = torch.library.custom_op(
    "vispeft::bottleneck_backward",
    _run_backward,
    mutates_args=(),
    device_types=_DEVICES,
    schema="(Tensor grad, Tensor x, Tensor z, Tensor down_w, Tensor up_w, bool is_sequential, str activation, "
    "float scale, str implementation, bool needs_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@bottleneck_op.register_fake
def _(y: Tensor | None, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    down_w = args[0]
    return x.new_empty((x if y is None else y).shape), x.new_empty(x.shape[:-1].numel(), down_w.shape[0])


@bottleneck_backward_op.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, _, down_w, up_w, *_, needs_x = args
    down = down_w.new_empty(down_w.shape), grad.new_empty(down_w.shape[0])
    up = up_w.new_empty(up_w.shape), grad.new_empty(up_w.shape[0])
    return grad.new_empty(x.shape if needs_x else 0), *down, *up


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.scale, ctx.implementation = inputs
    _keep(ctx, tuple(tensors), output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    options, needs_x = (ctx.activation, ctx.scale, ctx.implementation), ctx.needs_input_grad[1]
    grad_x, *maps = bottleneck_backward_op(grad, *ctx.saved_tensors, ctx.is_sequential, *options, needs_x)
    return *_input_gradients(ctx, grad, Gradients(grad_x if needs_x else None, *maps)), *(None,) * 3


bottleneck_op.register_autograd(_backward, setup_context=_setup_context)
