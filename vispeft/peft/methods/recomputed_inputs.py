"""Inputs of linear maps that backward recomputes from what autograd keeps anyway.

The input of a linear map is often the output of a LayerNorm or an activation. LoRA needs it in backward. The input of
the norm is kept for the norm's own backward, so recomputing the norm from it costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vispeft.peft.methods.tensor_table import TensorTable

# modules whose own backward keeps their input, and whose forward is cheap and repeats to the bit
RECOMPUTED = (nn.LayerNorm, nn.GELU, nn.SiLU)


@dataclass(frozen=True)
class _Source:
    """Origin of an output: `module(tensor)`, as long as output and tensor have these versions."""

    module: nn.Module
    tensor: Tensor
    versions: tuple[int, int]


class RecomputedInputs:
    """Outputs of cheap frozen modules, with the inputs from which backward can recompute them."""

    def __init__(self) -> None:
        self._sources: TensorTable[_Source] = TensorTable()

    def __len__(self) -> int:
        return len(self._sources)

    def record(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Record the source of a module's output: a forward hook for modules that `is_recomputed` accepts."""
        if torch.compiler.is_compiling() or not output.requires_grad or len(args) != 1:
            return
        # the output may not be that of the class's `forward`: after another hook, or where `forward` was replaced
        if next(iter(module._forward_hooks.values())) != self.record or "forward" in vars(module):
            return
        (source,) = args
        if source.dtype == output.dtype and all(parameter.dtype == output.dtype for parameter in module.parameters()):
            # detached, for the source must hold neither the graph nor the output
            self._sources[output] = _Source(module, source.detach(), (output._version, source._version))

    def recompute_of(self, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
        """Return a function and the tensor from which it recomputes x, or None where x itself must be kept."""
        if torch.compiler.is_compiling():
            return None
        source = self._sources.get(x)
        if source is None or source.versions != (x._version, source.tensor._version):
            return None
        return partial(type(source.module).forward, source.module), source.tensor


def is_recomputed(module: nn.Module) -> bool:
    """Return True for a module whose output can be recomputed from its input, row by row."""
    is_rowwise = not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1
    return isinstance(module, RECOMPUTED) and is_rowwise and not (isinstance(module, nn.SiLU) and module.inplace)
