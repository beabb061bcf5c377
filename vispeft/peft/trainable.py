"""Parameters that no plan can train or adapt."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from vispeft.errors import PlanError
from vispeft.peft.targets import Names


def refuse_uninitialized(names: Names) -> None:
    """Refuse a model with lazy modules, whose parameters have no shape before the first forward pass."""
    for name, parameter in names.parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise PlanError(f"`{name}` has no shape yet. Run the model once on an example, then call `inject`.")


def refuse_integers(names: Names, trained: Iterable[str]) -> None:
    """Refuse parameters that are to be trained in full, but can have no gradient."""
    for name in trained:
        dtype = names.parameters[name].dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            raise PlanError(
                f"`{name}` holds {_told(dtype)} values, which cannot be trained. Write patterns in `train` that leave "
                "it out."
            )


def refuse_unreal(parameter: Tensor) -> None:
    """Refuse a parameter whose values a delta's real numbers cannot change."""
    if not parameter.is_floating_point():
        raise PlanError(
            f"This parameter holds {_told(parameter.dtype)} values, which cannot take a change of real numbers. Name a "
            "module, whose output is changed instead."
        )


def _told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
