"""Floating-point operations of what runs, by torch's formulas for each operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of operations in the `with` block, a multiplication and an addition as two.

    Like torch's own counter, but without its tree of modules, whose hooks keep recomputed tensors alive.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count its operations."""
        options = kwargs or {}
        output = func(*args, **options)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.total += int(formula(*args, **options, out_val=output))
            if func.overloadpacket is torch.ops.aten.convolution_backward:
                self.total -= _overcounted(formula, args, output)
        return output


def _overcounted(formula: Callable[..., int], args: Sequence[Any], output: Any) -> int:
    """Return what torch counts too much for the weight's gradient of a grouped convolution: it ignores the groups."""
    *others, groups, output_mask = args
    if int(groups) == 1 or not output_mask[1]:
        return 0
    of_weight = int(formula(*others, groups, [False, True, False], out_val=output))
    return of_weight - of_weight // int(groups)
