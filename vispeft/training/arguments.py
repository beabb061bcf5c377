"""Arguments and result of `trainer.fit`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vispeft.models.base import Criterion
from vispeft.training.logs import RunLog
from vispeft.training.schedule import Schedule


@dataclass(frozen=True)
class Task:
    """A model with the loss, the optimizer and the learning rates that train it.

    optimizer: over the trainable parameters of `model`; each group has an `initial_lr`
    tail: module that contains `model` and takes its place on batches of kept features; None for batches of images
    """

    model: nn.Module
    criterion: Criterion
    optimizer: Optimizer
    schedule: Schedule
    tail: nn.Module | None = None


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop; lengths and intervals in optimizer steps.

    accumulate: batches whose mean gradient makes one step
    clip_norm: largest norm of all gradients together; None: no clipping
    eval_every: None: at the end only
    checkpoint_every: interval of further checkpoints beside those around each evaluation; None: no others
    patience: number of evaluations in a row without a better `metric` that ends the run; None: no early stopping
    ema_decay: decay of an average of the trained weights, evaluated and kept in their place; None: no average
    metric: the metric of an evaluation whose highest value is best
    may_lack_gradient: names of trainable parameters that may get no gradient
    update_statistics: let norms that are trained in full update their running statistics
    compiles: compile the model's repeated blocks, which steps run and evaluations do not
    """

    steps: int
    accumulate: int = 1
    clip_norm: float | None = 1.0
    eval_every: int | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    patience: int | None = None
    ema_decay: float | None = None
    metric: str = "segm/AP"
    may_lack_gradient: Collection[str] = ()
    update_statistics: bool = False
    compiles: bool = False


@dataclass(frozen=True)
class Outputs:
    """Receivers of the results of a run.

    log: receives losses and metrics; enabled in the first process only
    checkpoint_path: file of the last checkpoint, written again and again
    keep_best: called in the first process with step and metrics while the model holds the weights to keep
    data: plain values that checkpoints keep, by which a resumed run recognises its data
    """

    log: RunLog
    checkpoint_path: Path
    keep_best: Callable[[int, Mapping[str, float]], None]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """Result of a run.

    best_step, best_metrics: of the evaluation whose weights were kept; -1 and empty without one
    train_seconds, evaluate_seconds: over all sessions of the run
    peak_memory_bytes: of training and evaluation, see `memory.peak_memory_bytes`
    is_interrupted: stopped by Ctrl-C or SIGTERM after saving, with work left for a resumed run
    """

    steps: int
    best_step: int
    best_metrics: Mapping[str, float]
    train_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: int
    is_stopped_early: bool
    is_interrupted: bool
