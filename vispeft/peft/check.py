"""Nothing sleeps: one forward pass that every delta must take part in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vispeft_kernels.errors import KernelError

from vispeft.errors import PlanError
from vispeft.peft.inject import attached, injection_of, recorded


def check(model: nn.Module, example: Any) -> None:
    """Runs the model once in eval mode, without gradients; PlanError names every delta that did not run.

    example: what the model is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments
    """
    injection_of(model)
    with recorded(model) as (finished, running), _evaluating(model), torch.no_grad():
        try:
            _call(model, example)
        except (KernelError, RuntimeError) as error:
            if not running:
                raise
            raise PlanError(f"`{running[-1]}` does not fit what its site gives: {error}") from error
    sleeping = [item.key for item in attached(model) if item.key not in finished]
    if sleeping:
        raise PlanError(
            f"These deltas never run, so they would not be trained: {', '.join(f'`{key}`' for key in sleeping)}. "
            f"The model does not call their modules (it may read the weights itself). Name the parameters, such as "
            f"`{sleeping[0].rpartition('.')[0]}.weight`."
        )


def _call(model: nn.Module, example: Any) -> None:
    match example:
        case Mapping():
            model(**example)
        case tuple() | list():
            model(*example)
        case _:
            model(example)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, the model is in eval mode; after it, every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
