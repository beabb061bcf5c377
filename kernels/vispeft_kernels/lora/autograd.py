"""The low-rank update with a hand-written gradient, shared by eager mode and `torch.compile`.

`forward` and `gradients` hold all of the arithmetic around an implementation. An autograd function runs them in eager
mode, where it may overwrite y and recompute x; the operator `vispeft::lora` runs them as one node of a compiled or
exported graph. With W given, the gradient of the frozen product is computed here too: x gets one gradient instead of a
sum of two, and no other tensor of the output's size is made. Kept for backward: x, and h = x a^T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vispeft_kernels.fresh import reshaped
from vispeft_kernels.lora import torch_impl, triton_impl
from vispeft_kernels.lora.options import Factors, InputRows, Kept, LoraOptions

Recompute = tuple[Callable[[Tensor], Tensor], Tensor]


class Implementation(Protocol):
    """Functions on rows that `torch_impl.py` has in torch and `triton_impl.py` in Triton."""

    def new_seed(self, x: Tensor) -> Tensor:
        """Draw a seed of dropout, int64 [1], on the device that the implementation reads it on."""

    def update_(self, y: Tensor, rows: Tensor, factors: Factors, options: LoraOptions) -> Tensor:
        """Add the update to y [M, N] in place; return h [M, parts * r]."""

    def linear(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors, options: LoraOptions
    ) -> tuple[Tensor, Tensor]:
        """Return the frozen map with its update [M, N], and h."""

    def gradients(
        self, grad: Tensor, kept: Kept, options: LoraOptions, needs_x: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the gradients of x [M, K], through the frozen product too where there is a weight, of a and of b."""


IMPLEMENTATIONS: dict[str, Implementation] = {"torch": torch_impl, "triton": triton_impl}


class Inputs(NamedTuple):
    """Tensors of a low-rank update.

    y: [..., N]. With a weight, plain data to be overwritten, or None to be computed here; without, it has a gradient
    x: [..., K]; weight: [N, K]; bias: [N]; a: [parts * r, K]; b: [parts * n, r]
    """

    y: Tensor | None
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor
    b: Tensor

    @property
    def factors(self) -> Factors:
        """a and b."""
        return Factors(self.a, self.b)

    def cast_x(self, dtype: torch.dtype) -> Inputs:
        """Return the same with x in another precision."""
        return Inputs(self.y, self.x.to(dtype), self.weight, self.bias, self.a, self.b)


@dataclass(frozen=True, eq=False)
class Call:
    """Options of one call in eager mode.

    recompute: a function of rows, which computes those of x from the tensor that is kept instead of x
    """

    options: LoraOptions
    implementation: Implementation
    recompute: Callable[[Tensor], Tensor] | None = None


class Gradients(NamedTuple):
    """Gradients of x [M, K], weight, bias, a and b; None where not needed."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor
    b: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the precision in which autocast would compute the products of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def lora(inputs: Inputs, options: LoraOptions, implementation: str, recompute: Recompute | None = None) -> Tensor:
    """Return the low-rank update [..., N] by one of `IMPLEMENTATIONS`.

    recompute: a function of rows, and a tensor of x's shape from which it computes x; that tensor is kept instead of x
    A compiled graph decides what to keep, and computes y again together with the update.
    """
    inputs = inputs.cast_x(compute_dtype(inputs.x) if inputs.y is None else inputs.y.dtype)
    if torch.compiler.is_compiling():
        y = inputs.y if inputs.weight is None else None
        seed = IMPLEMENTATIONS[implementation].new_seed(inputs.x) if options.dropout else None
        flat_options = options.scale, list(options.column_offsets), options.dropout, implementation
        out: Tensor = lora_op(y, *inputs[1:], seed, *flat_options)[0]
        return out
    call, source = new_call(inputs.x, options, implementation, recompute)
    result: Tensor = _Lora.apply(call, source, *inputs)
    return result


def new_call(
    x: Tensor, options: LoraOptions, implementation: str, recompute: Recompute | None
) -> tuple[Call, Tensor | None]:
    """Return the options of a call with a new seed for its dropout, and the tensor to keep instead of x, if any."""
    chosen = IMPLEMENTATIONS[implementation]
    if options.dropout:
        options = replace(options, seed=chosen.new_seed(x))
    function, source = (None, None) if recompute is None else recompute
    return Call(options, chosen, function), source


def flat(tensor: Tensor) -> Tensor:
    """Return a tensor [..., C] as rows [M, C]."""
    return tensor.reshape(-1, tensor.shape[-1])


def forward(inputs: Inputs, options: LoraOptions, implementation: Implementation) -> tuple[Tensor, Tensor]:
    """Return the updated output [..., N] and h [M, parts * r]. y is overwritten if it is plain data in rows."""
    y, x, weight, bias = inputs[:4]
    with torch.autocast(x.device.type, enabled=False):
        rows, factors = flat(x), inputs.factors.to(x.dtype)
        if y is None:
            assert weight is not None
            offset = None if bias is None else bias.to(x.dtype)
            out, hidden = implementation.linear(rows, weight.to(x.dtype), offset, factors, options)
            return reshaped(out, (*x.shape[:-1], out.shape[1])), hidden
        out = y if weight is not None and y.is_contiguous() else y.clone(memory_format=torch.contiguous_format)
        return out, implementation.update_(out.view(-1, y.shape[-1]), rows, factors, options)


def gradients(grad: Tensor, kept: Kept, call: Call, needs: Sequence[bool]) -> Gradients:
    """Return the gradients that belong to grad [..., N]. needs: true for each of x, weight and bias that has one."""
    weight, factors = kept.weight, kept.factors
    needs_x, needs_weight, needs_bias = needs
    with torch.autocast(grad.device.type, enabled=False):
        by_row = flat(grad)
        cast = replace(kept, factors=factors.to(by_row.dtype))
        grad_x, grad_a, grad_b = call.implementation.gradients(by_row, cast, call.options, needs_x)
        grad_weight = by_row.t() @ kept.rows[:] if needs_weight else None
        grad_bias = by_row.sum(0) if needs_bias else None
    if grad_weight is not None and weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    return Gradients(grad_x, grad_weight, grad_bias, grad_a.to(factors.a.dtype), grad_b.to(factors.b.dtype))


def _keep(ctx: Any, inputs: Inputs, hidden: Tensor, seed: Tensor | None = None) -> None:
    """Save tensors and dtypes for the backward pass of either form."""
    ctx.save_for_backward(inputs.x, inputs.weight, inputs.a, inputs.b, hidden, seed)
    ctx.bias_dtype = None if inputs.bias is None else inputs.bias.dtype


def _input_gradients(ctx: Any, grad: Tensor, grads: Gradients, needs_y: bool) -> tuple[Tensor | None, ...]:
    """Return the gradients in the order of `Inputs`."""
    x = None if grads.x is None else grads.x.view(*grad.shape[:-1], grads.x.shape[-1])
    bias = None if grads.bias is None else grads.bias.to(ctx.bias_dtype)
    return grad if needs_y else None, x, grads.weight, bias, grads.a, grads.b


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, source: Tensor | None, *tensors: Tensor) -> Tensor:
        inputs = Inputs(*tensors)
        out, hidden = forward(inputs, call.options, call.implementation)
        if out is inputs.y:
            ctx.mark_dirty(out)
        _keep(ctx, inputs if source is None else inputs._replace(x=source), hidden)
        ctx.call = call
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, hidden, _ = ctx.saved_tensors
        needs_y, *needs = ctx.needs_input_grad[2:6]
        rows = InputRows(flat(x), ctx.call.recompute, grad.dtype)
        grads = gradients(grad, Kept(rows, weight, Factors(a, b), hidden), ctx.call, needs)
        return None, None, *_input_gradients(ctx, grad, grads, needs_y)


# operators take flat arguments: only the functions from here on pack and unpack them
_OPTIONS = "Tensor? seed, float scale, int[] column_offsets, float dropout, str implementation"
_DEVICES = ("cpu", "cuda")


def _call_of(seed: Tensor | None, scale: float, offsets: list[int], dropout: float, implementation: str) -> Call:
    """Return the call of an operator's flat options."""
    return Call(LoraOptions(scale, tuple(offsets), dropout, seed), IMPLEMENTATIONS[implementation])


def _run_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Return the updated output [..., N], and h [M, parts * r]."""
    call = _call_of(*args[6:])
    out, hidden = forward(Inputs(*args[:6]), call.options, call.implementation)
    # in the layout of the fake tensor
    return out, hidden.contiguous()


def _run_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x [M, K], weight, bias, a and b; empty where not needed."""
    x, weight, a, b, hidden, *options, needs = args
    kept = Kept(InputRows(flat(x), None, grad.dtype), weight, Factors(a, b), hidden)
    grads = gradients(grad, kept, _call_of(*options), needs)
    return tuple(grad.new_empty(0) if one is None else one for one in grads)


lora_op = torch.library.custom_op(
    "vispeft::lora",
    _run_forward,
    mutates_args=(),
    device_types=_DEVICES,
    schema=f"(Tensor? y, Tensor x, Tensor? weight, Tensor? bias, Tensor a, Tensor b, {_OPTIONS}) -> (Tensor, Tensor)",
)
lora_backward_op = torch.library.custom_op(
    "vispeft::lora_backward",
    _run_backward,
    mutates_args=(),
    device_types=_DEVICES,
    schema=f"(Tensor grad, Tensor x, Tensor? weight, Tensor a, Tensor b, Tensor hidden, {_OPTIONS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@lora_op.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor]:
    y, x, weight, _, a, _ = args[:6]
    columns = y.shape[-1] if weight is None else weight.shape[0]
    return x.new_empty(*x.shape[:-1], columns), x.new_empty(x.shape[:-1].numel(), a.shape[0])


@lora_backward_op.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, weight, a, b, *_, (needs_x, needs_weight, needs_bias) = args
    return (
        grad.new_empty((x.shape[:-1].numel(), x.shape[-1]) if needs_x else (0,)),
        weight.new_empty(weight.shape) if needs_weight else grad.new_empty(0),
        grad.new_empty(grad.shape[-1] if needs_bias else 0),
        a.new_empty(a.shape),
        b.new_empty(b.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    seed, *ctx.options = inputs[6:]
    _keep(ctx, Inputs(*inputs[:6]), output[1], seed)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needs_y, *needs = ctx.needs_input_grad[:4]
    x, weight, bias, a, b = lora_backward_op(grad, *ctx.saved_tensors, *ctx.options, needs)
    needs_x, needs_weight, needs_bias = needs
    grads = Gradients(x if needs_x else None, weight if needs_weight else None, bias if needs_bias else None, a, b)
    return *_input_gradients(ctx, grad, grads, needs_y), *(None,) * 5


lora_op.register_autograd(_backward, setup_context=_setup_context)
