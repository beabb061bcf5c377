"""Dimension of the channels of a module's output, by a trial where sizes alone do not tell it.

A row of a weight inside the module is made NaN in a copy. Where it ends up in the output shows the channels: at one
index of their dimension, at every position of the map.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vispeft.peft.norms import is_norm
from vispeft.peft.outputs import first_features


@torch.no_grad()
def channel_dim_by_trial(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], y: Tensor, channels: int
) -> int | None:
    """Return the dimension of the channels, 1 or -1; None where the trial does not tell it.

    args, kwargs: of a call of the module, which stay as they are
    y: features of its output before any delta
    """
    try:
        twin = copy.deepcopy(module).eval()
    except Exception:
        # a module may hold tensors that cannot be copied
        return None
    for part in twin.modules():
        # the trial must be seen by no hook, and deltas are not part of it
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    for weight in _weights(twin, channels):
        row = weight[0].clone()
        weight[0].fill_(torch.nan)
        marked = _marked(twin, args, kwargs, y)
        weight[0].copy_(row)
        if marked is None:
            return None
        dims = [dim for dim in (1, -1) if bool(marked.any()) and marked.select(dim, 0).sum() == marked.sum()]
        if len(dims) == 1:
            return dims[0]
    return None


def _weights(module: nn.Module, channels: int) -> Iterator[Tensor]:
    """Yield the weights of maps and norms that have a row for each channel, from the last module's."""
    for part in reversed(list(module.modules())):
        weight = dict(part.named_parameters(recurse=False)).get("weight")
        if weight is None or not weight.is_floating_point() or len(weight) != channels:
            continue
        if isinstance(part, nn.Linear | nn.Conv2d) or is_norm(part):
            yield weight


def _marked(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], y: Tensor) -> Tensor | None:
    """Return a mask of the entries of the output that are NaN now and were not in y; None where the module fails."""
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, dict(kwargs)))
    try:
        found = first_features(module.forward(*args, **kwargs))
    except Exception:
        return None
    return None if found is None or found[1].shape != y.shape else found[1].isnan() & ~y.isnan()
