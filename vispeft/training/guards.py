"""Checks during training: losses that are not finite, and trainable parameters without a gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from vispeft.errors import TrainingError


class NonFiniteError(TrainingError):
    """A step whose losses or gradients are not finite."""


class NoGradientError(TrainingError):
    """Trainable parameters on which the loss does not depend."""


@dataclass(frozen=True)
class BatchLosses:
    """Losses of one forward pass. losses: weighted loss parts by name; file_names: of the batch's images."""

    file_names: tuple[str, ...]
    losses: dict[str, float]

    @property
    def is_finite(self) -> bool:
        """Tell whether every loss part is finite."""
        return all(math.isfinite(value) for value in self.losses.values())


def check_finite(batches: Sequence[BatchLosses], grad_norm: float, *, step: int, lr: float, may_skip: bool) -> None:
    """Refuse a step whose losses or gradients are not finite, before it changes any weight.

    step: number of the step, counted from 1
    may_skip: accept non-finite gradients, as loss scaling (fp16) yields now and then; the scaler skips their step
    """
    remedy = (
        f"This step changed no weight, and the last checkpoint stands. Lower the learning rate (now {lr:g}) or use the "
        "precision fp32, and train again; if the error comes back, look at these images."
    )
    bad = [batch for batch in batches if not batch.is_finite]
    if bad:
        parts = ", ".join(f"{name} {value:.4g}" for name, value in bad[0].losses.items())
        raise NonFiniteError(
            f"The loss must be finite, but is not in step {step}: {parts}. Images: {_images(bad)}. {remedy}"
        )
    if not math.isfinite(grad_norm) and not may_skip:
        parts = "; ".join(", ".join(f"{name} {value:.4g}" for name, value in b.losses.items()) for b in batches)
        raise NonFiniteError(
            f"The gradients must be finite, but their norm is {grad_norm} in step {step}, with losses {parts}. "
            f"Images: {_images(batches)}. {remedy}"
        )


def check_gradients(model: nn.Module, *, may_lack_gradient: Collection[str] = ()) -> None:
    """Raise an error if a trainable parameter got no gradient: the loss does not depend on it, so it would not change.

    may_lack_gradient: names of parameters that may get none
    """
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    lacking = [name for name in lacking if name not in may_lack_gradient]
    if lacking:
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        listed = ", ".join(f"`{name}`" for name in lacking[:8]) + more
        raise NoGradientError(
            f"Every trainable parameter must get a gradient, but after the first step {len(lacking)} got none: "
            f"{listed}. The loss does not depend on them. Do not train them."
        )


def warn_of_no_instances() -> None:
    """Warn that no image of the whole run had an instance."""
    warnings.warn(
        "No training image of this run had an instance, so the model learnt only the background. Train for more steps, "
        "or look at the images after augmentation: vispeft data show.",
        stacklevel=2,
    )


def _images(batches: Sequence[BatchLosses]) -> str:
    return ", ".join(name for batch in batches for name in batch.file_names)
