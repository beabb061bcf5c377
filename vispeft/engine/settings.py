"""Configuration -> criterion, optimizer, schedule and the settings of the training loop."""

from __future__ import annotations

import torch
from torch import nn

from vispeft.config import Config, TrainConfig
from vispeft.errors import ConfigError, TrainingError
from vispeft.models import LossSettings, SegmentationModel
from vispeft.models.base import Criterion
from vispeft.models.roles import roles_for
from vispeft.training.optim import OptimSettings, Rates, build_optimizer
from vispeft.training.schedule import Schedule
from vispeft.training.trainer import LoopSettings


def criterion_of(config: Config, model: SegmentationModel) -> Criterion:
    """Return the training loss of the model's family."""
    return model.criterion(LossSettings(num_points=config.loss.num_points))


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over the parameters that the plan made trainable."""
    settings = OptimSettings(
        lr=config.lr,
        weight_decay=config.weight_decay,
        methods={name: Rates(rates.lr, rates.weight_decay) for name, rates in config.methods.items()},
        regions={
            pattern: Rates(rates.lr, rates.weight_decay, rates.lr_scale or 1.0)
            for pattern, rates in (config.regions or {}).items()
        },
    )
    try:
        return build_optimizer(model, settings, roles_for(model))
    except TrainingError as error:
        raise ConfigError(f"`peft.deltas` and `peft.train`: {error}") from error


def schedule_of(config: TrainConfig) -> Schedule:
    """Learning rate schedule over the steps of a resolved configuration."""
    try:
        return Schedule(
            steps=config.steps or 0,
            warmup=config.warmup or 0,
            kind=config.schedule,
            milestones=config.milestones,
            gamma=config.gamma,
        )
    except TrainingError as error:
        raise ConfigError(f"`train.warmup`: {error}") from error


def loop_settings_of(config: TrainConfig) -> LoopSettings:
    """The loop's settings of a resolved configuration."""
    return LoopSettings(
        steps=config.steps or 0,
        accumulate=config.accumulate,
        clip_norm=config.clip,
        eval_every=config.eval_every,
        log_every=config.log_every or 1,
        checkpoint_every=config.checkpoint_every,
        patience=config.patience,
        ema_decay=config.ema,
        update_statistics=config.update_statistics,
    )
