"""What stands where the user left a key empty: defaults scaled to the size of the training set."""

from __future__ import annotations

import math
import os
import sys

from vispeft.config.schema import Config, TrainConfig

DEFAULT_EPOCHS = 30
FEWEST_STEPS = 300
MOST_STEPS = 90_000


def resolve(config: Config, num_images: int) -> Config:
    """`config` with every schedule key filled in for a training set of `num_images` images.

    steps: 30 passes over the images, at least 300 and at most 90,000 steps; `train.epochs` becomes steps
    warmup: a twentieth of the steps, at most 500
    eval_every: a fifth of the steps; log_every: a hundredth, at most 50
    workers: the cores that this process may use less one, at most 8
    """
    train = config.train
    steps = _steps(train, num_images)
    filled = {
        "steps": steps,
        "epochs": None,
        "warmup": train.warmup if train.warmup is not None else min(500, steps // 20),
        "eval_every": train.eval_every or math.ceil(steps / 5),
        "log_every": train.log_every or max(1, min(50, steps // 100)),
        "workers": train.workers if train.workers is not None else min(8, _cores() - 1),
    }
    return config.model_copy(update={"train": train.model_copy(update=filled)})


def _steps(train: TrainConfig, num_images: int) -> int:
    if train.steps is not None:
        return train.steps
    steps_per_epoch = num_images / (train.batch_size * train.accumulate * train.devices)
    if train.epochs is not None:
        return max(1, math.ceil(train.epochs * steps_per_epoch))
    return min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(DEFAULT_EPOCHS * steps_per_epoch)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
