"""Configuration -> device, criterion, optimizer, schedule and the settings of the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import nn

from vispeft.config import Config, TrainConfig
from vispeft.errors import ConfigError, TrainingError
from vispeft.models import LossSettings, SegmentationModel
from vispeft.models.base import Criterion
from vispeft.models.roles import roles_for
from vispeft.training.arguments import LoopSettings
from vispeft.training.compilation import CompilationError, check_compiler
from vispeft.training.devices import build_fabric
from vispeft.training.guards import NoGradientError, NonFiniteError
from vispeft.training.optim import OptimSettings, Rates, build_optimizer
from vispeft.training.schedule import Schedule


def fabric_of(config: TrainConfig) -> Fabric:
    """Return a launched Fabric on the device and in the precision of a configuration."""
    return build_fabric(config.device, config.precision, config.devices, prefix="train.")


def check_compilation(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError where `train.compile` is set and nothing can be compiled for the device of the run."""
    if config.compile:
        with naming_training_keys():
            check_compiler(device)


def criterion_of(
    config: Config, model: SegmentationModel, labelled_classes: tuple[int, ...] | None = None
) -> Criterion:
    """Return the training loss of the model's family. labelled_classes: see `LossSettings`"""
    return model.criterion(LossSettings(num_points=config.loss.num_points, labelled_classes=labelled_classes))


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.AdamW:
    """Return AdamW over the parameters that the plan made trainable."""
    settings = OptimSettings(
        lr=config.lr,
        weight_decay=config.weight_decay,
        methods={name: Rates(rates.lr, rates.weight_decay) for name, rates in config.methods.items()},
        regions={
            pattern: Rates(rates.lr, rates.weight_decay, rates.lr_scale or 1.0, rates.start or 0.0)
            for pattern, rates in (config.regions or {}).items()
        },
        lora_plus_ratio=config.lora_plus_ratio,
    )
    try:
        return build_optimizer(model, settings, roles_for(model))
    except TrainingError as error:
        raise ConfigError(f"`peft.deltas`, `peft.train`: {error}") from error


def schedule_of(config: TrainConfig) -> Schedule:
    """Return the learning rate schedule over the steps of a resolved configuration."""
    try:
        return Schedule(
            steps=config.steps or 0,
            warmup=config.warmup or 0,
            kind=config.schedule,
            milestones=config.milestones,
            gamma=config.gamma,
        )
    except TrainingError as error:
        raise ConfigError(f"`train`: {error}") from error


def loop_settings_of(config: TrainConfig, metric: str) -> LoopSettings:
    """Return the loop's settings of a resolved configuration. metric: its highest value is best"""
    return LoopSettings(
        steps=config.steps or 0,
        accumulate=config.accumulate,
        clip_norm=config.clip,
        eval_every=config.eval_every,
        log_every=config.log_every or 1,
        checkpoint_every=config.checkpoint_every,
        patience=config.patience,
        ema_decay=config.ema,
        metric=metric,
        update_statistics=config.update_statistics,
        compiles=config.compile,
    )


@contextlib.contextmanager
def naming_training_keys() -> Iterator[None]:
    """Context that adds the configuration keys to errors of `fit`, whose remedies name no keys."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} The keys are `train.lr` and `train.precision`.") from error
    except NoGradientError as error:
        raise NoGradientError(f"{error} The keys are `peft.deltas` and `peft.train`.") from error
    except CompilationError as error:
        raise ConfigError(f"`train.compile` must be false: {error}") from error
