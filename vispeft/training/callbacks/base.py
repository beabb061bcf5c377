"""Callbacks of a caller of `trainer.fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Callback:
    """Functions that the trainer calls in every process. An error in one ends the run.

    on_step: called with the steps done and the number of steps after each update of the weights, while the gradients
        that made it (clipped, and not finite in a step that fp16 loss scaling skips) are still there. It may change
        the weights; an average of the weights takes them in afterwards. What it needs to resume must be buffers of the
        modules that it acts on.
    on_evaluation: called with step and metrics after each evaluation, when results and checkpoint are written
    """

    on_step: Callable[[int, int], None] | None = None
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None
