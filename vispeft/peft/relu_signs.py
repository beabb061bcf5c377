"""ReLU modules before frozen maps: the signs of the output are kept for backward, one byte per value in place of four.

Torch's ReLU keeps its output. A frozen map needs no input for its backward pass, so that nothing else needs the output.
A map with deltas or with trained parameters does: it keeps the output itself, and signs beside it would cost more. Such
ReLU modules are found in the first pass and left alone from the next one on. Within a pass nothing changes, since
activation checkpointing, which runs a part of it again in backward, must keep the same tensors then.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from vispeft_kernels.relu import sign_keeping_relu

from vispeft.peft.methods.base_modules import has_backward_hooks
from vispeft.peft.methods.tensor_table import TensorTable


class ReLUSigns:
    """Hooks of the ReLU modules of one model, and of the modules that may need their outputs."""

    def __init__(self) -> None:
        self._sources: TensorTable[Tensor] = TensorTable()
        self._producers: TensorTable[nn.Module] = TensorTable()
        self._needed: set[nn.Module] = set()
        self._found: set[nn.Module] = set()

    def begin_pass(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Leave ReLU modules alone whose outputs were needed in the pass before: a forward pre-hook of the model."""
        if not torch.compiler.is_compiling():
            self._needed |= self._found
            self._found.clear()

    def detach_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        """Keep autograd out of a ReLU whose output need not be kept: a forward pre-hook."""
        if torch.compiler.is_compiling() or module in self._needed or not _is_unobserved(module) or len(args) != 1:
            return None
        (x,) = args
        if not (x.requires_grad and torch.is_grad_enabled()):
            return None
        detached: Tensor = x.detach()
        self._sources[detached] = x
        return (detached,)

    def keep_signs(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Put the ReLU that keeps signs in the place of a detached one: a forward hook."""
        if torch.compiler.is_compiling() or (source := self._sources.pop(args[0])) is None:
            return None
        y = sign_keeping_relu(source)
        self._producers[y] = module
        return y

    def need(self, x: object) -> None:
        """Note that a tensor is kept for backward in any case."""
        if isinstance(x, Tensor) and (producer := self._producers.get(x)) is not None:
            self._found.add(producer)

    def need_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note that a module with trained parameters keeps its input: a forward pre-hook."""
        if not torch.compiler.is_compiling() and args:
            self.need(args[0])

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # a copied or unpickled model has made no tensors yet
        return type(self), ()


def keeps_its_output(module: nn.Module) -> bool:
    """Return True for torch's ReLU that leaves its input as it is."""
    return type(module) is nn.ReLU and not module.inplace


def _is_unobserved(module: nn.Module) -> bool:
    """Return True for a module with torch's own `forward`, where no hook but ours would see the detached output."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    is_alone = all(len(each) == 1 for each in hooks) and "forward" not in vars(module)
    return is_alone and not has_backward_hooks(module)
