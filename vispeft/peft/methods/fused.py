"""A frozen linear map and its low-rank update in one kernel, at the sites where that was measured to be faster.

The map itself is then called with no rows, which costs next to nothing, and its update makes the whole output. Module,
parameters and names stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vispeft_kernels.lora import is_fused, lora_linear

from vispeft.peft.methods.base import Delta
from vispeft.peft.methods.base_modules import is_plain_linear
from vispeft.peft.methods.lora import LinearLoRA
from vispeft.peft.methods.replay import replay_of

_MARK = "_vispeft_rows"


def hold_back(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
    """A forward pre-hook: no rows for the map in place of x [..., in], where one kernel is to do all; else None."""
    if torch.compiler.is_compiling() or len(args) != 1:
        return None
    (x,), delta = args, _lora_of(module)
    if delta is None or not _is_unwatched(module, delta):
        return None
    assert isinstance(module, nn.Linear)
    if not is_fused(x, module.weight, delta.a, delta.b, column_offsets=delta.starts):
        return None
    nothing = x.detach().new_empty(0, x.shape[-1])
    setattr(nothing, _MARK, x)
    return (nothing,)


def held_back(args: tuple[Any, ...]) -> Tensor | None:
    """Return what `hold_back` kept from the module; None where it kept nothing."""
    if torch.compiler.is_compiling() or not args or not isinstance(args[0], Tensor):
        return None
    x: Tensor | None = vars(args[0]).get(_MARK)
    return x


def make_whole(module: nn.Module, x: Tensor) -> Tensor:
    """The map with its update, from what was held back."""
    delta = _lora_of(module)
    assert isinstance(module, nn.Linear)
    assert delta is not None
    return lora_linear(
        x,
        module.weight,
        module.bias,
        delta.a,
        delta.b,
        delta.scale,
        column_offsets=delta.starts,
        dropout=delta.dropout if delta.training else 0.0,
        recompute=replay_of(x),
    )


def _lora_of(module: nn.Module) -> LinearLoRA | None:
    """The update of a plain linear map, where it is the first of its active deltas."""
    first = next((child for child in module.children() if isinstance(child, Delta) and child.is_active), None)
    return first if is_plain_linear(module) and type(first) is LinearLoRA else None


def _is_unwatched(module: nn.Module, delta: nn.Module) -> bool:
    """Tell whether no hooks but ours would notice that the map gets no rows, or that its update is not called."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    return all(len(one) == 1 for one in hooks) and not delta._forward_hooks and not delta._forward_pre_hooks
