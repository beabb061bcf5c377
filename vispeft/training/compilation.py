"""Compilation of a model's repeated blocks by `torch.compile`, with the deltas inside them.

Blocks of one form, such as those of an encoder or the layers of a decoder, share what is compiled: the first of them is
compiled and the others reuse it. All that is between them runs as it is. A block is compiled in place, so that tensors
keep their names, and a copy of the model is not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import TrainingError
from vispeft.peft.methods.base import Delta

Backend = str | Callable[..., Any]

BACKEND = "inductor"

# of one kind of block: with and without a gradient of its input or a mask, of fixed and of changing sizes, for each
# combination of its deltas. Beyond the limit torch would run the block as it is
_MOST_FORMS = 64


class CompilationError(TrainingError):
    """A model, or a machine, for which nothing can be compiled."""


def compile_blocks(model: nn.Module, *, backend: Backend | None = None) -> int:
    """Compile every repeated block of a model at its first call, in place. Returns the number of blocks.

    A block is compiled for the sizes of its first call, and once more, for all sizes, when they change; a block with
    convolutions for each size, since torch fails on some of them for all sizes. Raises CompilationError for a model
    without repeated blocks.

    backend: of `torch.compile`; None for `BACKEND`
    """
    blocks = list(repeated_blocks(model))
    if not blocks:
        raise CompilationError(
            "`torch.compile` needs repeated blocks, such as those of an encoder; the model has none."
        )
    # older releases have this name alone
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, _MOST_FORMS)
    # cuts compiled code where processes exchange gradients, as they do between blocks already
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.compile(backend=backend or BACKEND, dynamic=False if _works_on_maps(block) else None)
    return len(blocks)


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a model: modules in a list of their own kind, except those of torch and those of deltas."""
    for child in model.children():
        if not isinstance(child, Delta):
            yield from repeated_blocks(child)
    if _is_list_of_blocks(model):
        yield from model.children()


def not_compiled() -> AbstractContextManager[None]:
    """Context in which compiled blocks run as they are, with the results of a model that was not compiled."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return context


def check_compiler(device: torch.device, *, backend: Backend | None = None) -> None:
    """Raise CompilationError where nothing can be compiled for a device, as without a C++ compiler."""
    x = torch.zeros(2, device=device)
    try:
        torch.compile(_probe, backend=backend or BACKEND)(x)
    # each library below torch has errors of its own
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        # the first line of torch's own error names the backend alone
        reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
        raise CompilationError(
            f"`torch.compile` does not work here on device {device.type} ({reason}). Or install a C++ compiler such "
            "as g++, or name one in the environment variable CXX."
        ) from error


def _probe(x: Tensor) -> Tensor:
    return (x + 1).relu()


def _works_on_maps(module: nn.Module) -> bool:
    """Return True for blocks with convolutions of their own, whose stages have maps of several sizes."""
    own = (child for child in module.children() if not isinstance(child, Delta))
    return isinstance(module, nn.Conv2d) or any(map(_works_on_maps, own))


def _is_list_of_blocks(module: nn.Module) -> bool:
    kinds = {type(child) for child in module.children()}
    is_list = isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len(kinds) == 1
    return is_list and not next(iter(kinds)).__module__.startswith("torch.")
