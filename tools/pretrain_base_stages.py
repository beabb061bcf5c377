"""Stages of `pretrain_base.py`: steps, image sizes and learning rates of the whole recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

SEED = 20261120
WARMUP = 150


@dataclass(frozen=True)
class Stage:
    """Training at one image size.

    batch: scenes per process and step
    extra: share of batches from the real set
    max_objects: scenes with more objects are drawn again
    learns_kinds: train a head beside the model to predict the kind of shape
    min_side: pixels; scenes with a smaller median square root of object area are drawn again
    """

    steps: int
    image_size: int
    batch: int
    lr: float
    final_lr: float
    num_queries: int
    is_class_agnostic: bool = False
    extra: float = 0.0
    max_objects: int = 200
    learns_kinds: bool = False
    min_side: float = 0.0


STAGES = (
    Stage(steps=1300, image_size=128, batch=8, lr=5e-4, final_lr=5e-4, num_queries=50, max_objects=25, min_side=9.0),
    Stage(steps=100, image_size=192, batch=5, lr=5e-4, final_lr=5e-4, num_queries=80, extra=0.15, max_objects=70),
    Stage(
        800,
        image_size=192,
        batch=5,
        lr=5e-4,
        final_lr=4e-4,
        num_queries=80,
        extra=0.15,
        max_objects=70,
        is_class_agnostic=True,
    ),
    Stage(450, image_size=256, batch=3, lr=4e-4, final_lr=1e-5, num_queries=100, extra=0.15, is_class_agnostic=True),
    Stage(
        1050,
        image_size=192,
        batch=5,
        lr=5e-4,
        final_lr=4e-4,
        num_queries=100,
        extra=0.15,
        max_objects=90,
        is_class_agnostic=True,
        learns_kinds=True,
    ),
    Stage(
        600,
        image_size=256,
        batch=3,
        lr=4e-4,
        final_lr=1e-6,
        num_queries=100,
        extra=0.15,
        is_class_agnostic=True,
        learns_kinds=True,
    ),
)


def stage_at(step: int) -> tuple[Stage, int]:
    """Return the stage of a global step, and the step within it."""
    for stage in STAGES:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    return STAGES[-1], STAGES[-1].steps


def learning_rate(step: int) -> float:
    """Return the rate of a step: a cosine from `lr` to `final_lr` of the stage, after a warm-up from the last stage."""
    stage, within = stage_at(step)
    share = (1 + math.cos(math.pi * within / stage.steps)) / 2
    rate = stage.final_lr + (stage.lr - stage.final_lr) * share
    index = STAGES.index(stage)
    before = STAGES[index - 1].final_lr if index else 0.0
    return before + (rate - before) * min(1.0, (within + 1) / WARMUP)
