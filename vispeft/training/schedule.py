"""Learning rate schedule of a run: a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from vispeft.errors import TrainingError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine to `final_factor`, steps by `gamma` at `milestones`, or constant.

    steps, warmup: optimizer steps
    milestones: fractions of the run; the defaults are those of Detectron2's LSJ schedules, which Mask DINO uses
    """

    steps: int
    warmup: int = 0
    kind: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.889, 0.963)
    gamma: float = 0.1
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.steps:
            raise TrainingError(
                f"`warmup` must be between 0 and the number of steps, {self.steps}, but is {self.warmup}."
            )

    def factor(self, step: int) -> float:
        """Return the factor on the learning rates in step `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        match self.kind:
            case "cosine":
                done = (step - self.warmup) / max(self.steps - self.warmup, 1)
                cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
                return self.final_factor + (1 - self.final_factor) * cosine
            case "step":
                return float(self.gamma ** sum(step >= milestone * self.steps for milestone in self.milestones))
            case "constant":
                return 1.0
        raise TrainingError(f"`kind` must be `cosine`, `step` or `constant`, but is {self.kind!r}.")

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set each group's `lr` to its `initial_lr` times the factor of `step`, or to 0 before the group's `start`.

        `start` is a fraction of the run; groups without one learn from the first step.
        """
        factor = self.factor(step)
        for group in optimizer.param_groups:
            is_frozen = step < group.get("start", 0.0) * self.steps
            group["lr"] = 0.0 if is_frozen else group["initial_lr"] * factor
