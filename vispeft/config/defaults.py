"""Defaults of empty configuration keys, scaled to the size of the training set."""

from __future__ import annotations

import math
import os
import sys

from vispeft.config.schema import Config, LossConfig, TrainConfig

DEFAULT_EPOCHS = 30
FEWEST_STEPS = 300
MOST_STEPS = 90_000
# number of points (112 x 112) and input size in the training of Mask DINO
PUBLISHED_POINTS = 12544
PUBLISHED_SIZE = 1024
FEWEST_POINTS = 1024


def resolve(config: Config, num_images: int, image_size: int, *, on_cpu: bool = False) -> Config:
    """Return `config` with every default filled in, for `num_images` training images.

    image_size: longer side of the network input in pixels

    Defaults:
    steps: 30 passes over the images, at least 300 and at most 90,000 steps; `train.epochs` becomes steps
    warmup: a twentieth of the steps, at most 500
    eval_every: a fifth of the steps; log_every: a hundredth, at most 50
    workers: the available cores minus one, at most 8; one for every 8 cores if training runs `on_cpu`, because loading
        a batch is fast compared with a step there
    precision: bf16 for frozen weights in bf16, which take no other input
    num_points: see `default_points`
    """
    train = config.train
    steps = _steps(train, num_images)
    filled = {
        "steps": steps,
        "epochs": None,
        "warmup": train.warmup if train.warmup is not None else min(500, steps // 20),
        "eval_every": train.eval_every or math.ceil(steps / 5),
        "log_every": train.log_every or max(1, min(50, steps // 100)),
        "precision": "bf16" if config.model.frozen_precision == "bf16" else train.precision,
        "workers": train.workers if train.workers is not None else min(8, _cores() // 8 if on_cpu else _cores() - 1),
    }
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"image_size": image_size}),
            "train": train.model_copy(update=filled),
            "loss": LossConfig(num_points=config.loss.num_points or default_points(image_size)),
        }
    )


def default_points(image_size: int) -> int:
    """Return the number of points at which masks are compared.

    12544 at 1024 pixels as in Mask DINO, otherwise in proportion to the image area, at least 1024 and at most 12544.

    image_size: longer side of the network input in pixels
    """
    points = round(PUBLISHED_POINTS * (image_size / PUBLISHED_SIZE) ** 2)
    return min(PUBLISHED_POINTS, max(FEWEST_POINTS, points))


def _steps(train: TrainConfig, num_images: int) -> int:
    if train.steps is not None:
        return train.steps
    steps_per_epoch = num_images / (train.batch_size * train.accumulate * train.devices)
    if train.epochs is not None:
        return max(1, math.ceil(train.epochs * steps_per_epoch))
    return min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(DEFAULT_EPOCHS * steps_per_epoch)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
