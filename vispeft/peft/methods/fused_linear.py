"""A frozen linear map and its low-rank update in one kernel, at the sites where that was measured to be faster.

The map is called on an input without rows, which costs next to nothing, and the kernel computes the whole output. The
module, its parameters and their names stay as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from vispeft_kernels.lora import is_fused, lora_linear

from vispeft.peft.methods.base import Delta
from vispeft.peft.methods.base_modules import has_backward_hooks, is_plain_linear
from vispeft.peft.methods.lora import LinearLoRA
from vispeft.peft.methods.tensor_table import TensorTable


class TransparentHooks:
    """Base of hooks that leave every value as it is, and change the graph of autograd alone."""


class BypassedInputs:
    """Inputs of frozen linear maps that one kernel is to compute, each by the empty tensor that the map gets instead.

    Every call has an empty tensor of its own, so calls may be nested, and an entry ends with a call that fails.
    """

    def __init__(self) -> None:
        self._inputs: TensorTable[Tensor] = TensorTable()

    def __len__(self) -> int:
        return len(self._inputs)

    def bypass_base(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        """Replace x [..., in] by no rows where one kernel is to compute the output: a forward pre-hook."""
        if torch.compiler.is_compiling() or len(args) != 1:
            return None
        (x,), delta = args, _first_lora(module)
        if delta is None or not _is_unobserved(module, delta):
            return None
        assert isinstance(module, nn.Linear)
        if not is_fused(x, module.weight, delta.a, delta.b, column_offsets=delta.column_offsets):
            return None
        empty = x.detach().new_empty(0, x.shape[-1])
        self._inputs[empty] = x
        return (empty,)

    def take(self, args: tuple[Any, ...]) -> Tensor | None:
        """Return the input of a bypassed call by the arguments that its map got; None where it was not bypassed."""
        if torch.compiler.is_compiling() or not args or not isinstance(args[0], Tensor):
            return None
        return self._inputs.pop(args[0])


def fused_forward(module: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a bypassed map with its update. x: [..., in]"""
    delta = _first_lora(module)
    assert isinstance(module, nn.Linear)
    assert delta is not None
    return lora_linear(
        x,
        module.weight,
        module.bias,
        delta.a,
        delta.b,
        delta.scale,
        column_offsets=delta.column_offsets,
        dropout=delta.dropout if delta.training else 0.0,
        recompute=delta.recomputed_inputs.recompute_of(x),
    )


def _first_lora(module: nn.Module) -> LinearLoRA | None:
    """Return the update of a plain linear map, where it is the first of its active deltas."""
    first = next((child for child in module.children() if isinstance(child, Delta) and child.is_active), None)
    return first if is_plain_linear(module) and type(first) is LinearLoRA else None


def _is_unobserved(module: nn.Module, delta: nn.Module) -> bool:
    """Return True where no hook but ours would see the empty input, or miss the call of the update."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    is_alone = all(sum(not _is_transparent(hook) for hook in one.values()) == 1 for one in hooks)
    is_called = not delta._forward_hooks and not delta._forward_pre_hooks
    return is_alone and is_called and not has_backward_hooks(module) and not has_backward_hooks(delta)


def _is_transparent(hook: object) -> bool:
    return isinstance(hook, MethodType) and isinstance(hook.__self__, TransparentHooks)
