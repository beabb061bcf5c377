"""State of a run: everything that training changes, and thus everything that a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from vispeft.errors import CheckpointError
from vispeft.training.callbacks.ema import Ema
from vispeft.training.memory import peak_memory_bytes
from vispeft.training.seeds import rng_state
from vispeft.training.trained_tensors import restore_tensors, trained_tensors
from vispeft.training.validate import gather_objects


@dataclass
class Counters:
    """Plain values of a run's state. Each is updated by one part of the loop.

    By the trainer:
        step: optimizer steps done
        is_evaluation_due: the evaluation after the last step is not done yet; a resumed run begins with it
        train_seconds, evaluate_seconds: over all sessions of the run
        peak_memory_bytes: over all sessions of the run
    By the optimizer step:
        has_checked_gradients: every trainable parameter is known to get a gradient
        num_skipped: steps in a row that loss scaling (fp16) skipped
    By the loss log:
        loss_sums, num_summed: sums of the losses, and their number, since the last log line
    By the selection of the best:
        best_step, best_metrics: of the best evaluation so far; -1 and empty before the first
        evaluations_since_best: for early stopping
    """

    step: int = 0
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0
    is_evaluation_due: bool = False
    has_checked_gradients: bool = False
    loss_sums: dict[str, float] = field(default_factory=dict)
    num_summed: int = 0
    num_skipped: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def lacks_score(self) -> bool:
        """True while the evaluation after the last step is still due: it was cut off, or weights were kept unscored."""
        return self.is_evaluation_due or (self.best_step >= 0 and not self.best_metrics)

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Tell whether `patience` evaluations in a row brought no improvement; never with None."""
        return patience is not None and self.evaluations_since_best >= patience

    def require_score_of_kept(self) -> None:
        """Make the evaluation due if the kept weights have no metrics; it counts as an evaluation like any other."""
        if self.lacks_score and not self.best_metrics:
            self.best_step, self.is_evaluation_due = -1, True


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    tensors: trained parameters and buffers by name
    optimizer, precision: state dicts of the optimizer and of the precision plugin (loss scale)
    ema: state of the averages, or None
    rng: state of the random generators of each process, by rank
    data: values by which the caller of `fit` recognises its data; empty in checkpoints of older versions
    """

    counters: Counters
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    ema: dict[str, Tensor] | None
    rng: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunState:
    """Live state of a run in this process.

    ema: averages of the trained weights; None without
    data: see `Checkpoint`
    """

    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer
    ema: Ema | None
    data: Mapping[str, Any]
    counters: Counters = field(default_factory=Counters)

    def capture(self) -> Checkpoint:
        """Return the state as a checkpoint, tensors not copied. Every process must call this."""
        self.note_peak_memory()
        return Checkpoint(
            counters=self.counters,
            tensors=trained_tensors(self.model),
            optimizer=self.optimizer.state_dict(),
            precision=self.fabric.strategy.precision.state_dict(),
            ema=None if self.ema is None else self.ema.state_dict(),
            rng=gather_objects(self.fabric, rng_state(self.fabric.device)),
            data=dict(self.data),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint, which stays unchanged; the caller restores the random generators."""
        if len(checkpoint.rng) != self.fabric.world_size:
            raise CheckpointError(
                f"A run must go on with as many processes as it began with, {len(checkpoint.rng)}, "
                f"but has {self.fabric.world_size}."
            )
        if (checkpoint.ema is None) != (self.ema is None):
            was = "without" if checkpoint.ema is None else "with"
            raise CheckpointError(f"A run must go on as it began, {was} an average of its weights (`ema_decay`).")
        restore_tensors(self.model, checkpoint.tensors)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.fabric.strategy.precision.load_state_dict(checkpoint.precision)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.load_state_dict(checkpoint.ema)
        self.counters = copy.deepcopy(checkpoint.counters)

    def note_peak_memory(self) -> None:
        """Raise the recorded peak memory to that of this session."""
        self.counters.peak_memory_bytes = max(self.counters.peak_memory_bytes, peak_memory_bytes(self.fabric.device))
