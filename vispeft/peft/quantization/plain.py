"""Quantised maps turned into plain ones."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def make_plain(module: nn.Linear | nn.Conv2d, weight: Tensor) -> None:
    """Turn a quantised map into a plain one with this weight, in place: the module stays the same object."""
    bias, hooks = module.bias, {name: vars(module)[name] for name in _HOOKS}
    plain: nn.Linear | nn.Conv2d
    if isinstance(module, nn.Linear):
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    else:
        plain = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            cast("tuple[int, int]", module.kernel_size),
            cast("tuple[int, int]", module.stride),
            module.padding if isinstance(module.padding, str) else cast("tuple[int, int]", module.padding),
            cast("tuple[int, int]", module.dilation),
            module.groups,
            bias=False,
            device="meta",
        )
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    plain.bias = bias
    plain.training = module.training
    state = {**vars(plain), **hooks}
    vars(module).clear()
    module.__class__ = type(plain)
    vars(module).update(state)
