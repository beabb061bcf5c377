"""Outputs of cheap frozen modules are recomputed in backward from their inputs, which autograd keeps anyway.

The input of a linear map is often the output of a LayerNorm or an activation. LoRA needs it in the backward pass;
keeping the norm's input in its stead, which is kept already, costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

# maps whose own backward pass keeps their input, and whose forward pass is cheap and repeats to the bit
REPLAYED = (nn.LayerNorm, nn.GELU, nn.SiLU)

_MARK = "_vispeft_source"


@dataclass(frozen=True)
class _Source:
    """Source of a tensor: `module(tensor)`, unless the tensor was written to since."""

    module: nn.Module
    tensor: Tensor
    version: int


def is_replayed(module: nn.Module) -> bool:
    """Tell whether outputs of this module can be recomputed from its input, row by row."""
    is_rowwise = not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1
    return isinstance(module, REPLAYED) and is_rowwise and not (isinstance(module, nn.SiLU) and module.inplace)


def remember_source(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """A forward hook of such a module: notes on its output what it was made from."""
    if torch.compiler.is_compiling() or not output.requires_grad or len(args) != 1:
        return
    (source,) = args
    if source.dtype == output.dtype and all(parameter.dtype == output.dtype for parameter in module.parameters()):
        setattr(output, _MARK, _Source(module, source.detach(), output._version))


def replay_of(x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
    """A function and the tensor from which it makes x again, or None where x must be kept itself."""
    if torch.compiler.is_compiling():
        return None
    source = vars(x).get(_MARK)
    if not isinstance(source, _Source) or source.version != x._version:
        return None
    # not a method of the source: what a backward pass holds on to must not hold the tensor as well
    return partial(type(source.module).forward, source.module), source.tensor
