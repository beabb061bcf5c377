"""Configuration -> base model, plan, and the model that training changes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vispeft import peft
from vispeft.config import Config, ModelConfig, PeftConfig, methods_from, resolve
from vispeft.errors import ConfigError
from vispeft.models import MaskDINO, build_model, load_bundled, load_weights
from vispeft.models.roles import roles_for

BUNDLED = "bundled"
PRETRAINED = "pretrained"
NONE = "none"
DEFAULT_IMAGE_SIZE = 640
# what the bundled base was trained at
BUNDLED_IMAGE_SIZE = 256


def build_base(config: Config, num_classes: int, *, with_weights: bool = True) -> MaskDINO:
    """The base model, before anything is attached, on the CPU.

    What no weights are loaded for (the decoder over a timm backbone) is drawn from `train.seed`, so that the same
    configuration always gives the same base; the caller's random state stays as it is.

    with_weights: False leaves all weights but the bundled ones random, for what only needs shapes
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = _weighted(config.model, num_classes, with_weights)
    if config.model.activation_checkpointing:
        _checkpoint_activations(model, config.model)
    return model


def complete(config: Config, num_images: int) -> Config:
    """The configuration with nothing left open, for a training set of `num_images` images."""
    model = config.model
    size = model.image_size or (BUNDLED_IMAGE_SIZE if model.weights == BUNDLED else DEFAULT_IMAGE_SIZE)
    return resolve(config, num_images, size)


def build_plan(config: PeftConfig) -> peft.Plan:
    """What is trained, as `inject` takes it."""
    deltas = {pattern: methods_from(value, f"peft.deltas.{pattern}") for pattern, value in config.deltas.items()}
    if not deltas and not config.train:
        raise ConfigError(
            "`peft.deltas` or `peft.train` must name something to train, but both are empty. "
            "Full fine-tuning is peft.train=['**']."
        )
    return peft.Plan(deltas, train=config.train)


def attach(model: nn.Module, config: PeftConfig) -> None:
    """Freeze the base, attach the deltas and thaw what is trained in full, in place."""
    peft.inject(model, build_plan(config), roles=roles_for(model))


def _weighted(config: ModelConfig, num_classes: int, with_weights: bool) -> MaskDINO:
    if config.weights == BUNDLED:
        _require_bundled_keys(config)
        return load_bundled(num_classes)
    model = build_model(
        config.name,
        backbone=config.backbone or "resnet50",
        num_classes=num_classes,
        pretrained=with_weights and config.weights == PRETRAINED,
        image_size=config.image_size,
        size=config.size or "base",
        backbone_options=config.backbone_options,
        **config.options,
    )
    if with_weights and config.weights not in (PRETRAINED, NONE):
        load_weights(model, Path(config.weights).expanduser())
    return model


def _require_bundled_keys(config: ModelConfig) -> None:
    """The bundled base brings its own anatomy: keys that would change it are refused."""
    defaults = ModelConfig()
    for key in ("name", "backbone", "size", "options", "backbone_options"):
        if getattr(config, key) != getattr(defaults, key):
            raise ConfigError(
                f"`model.{key}` must be left out with `model.weights: bundled`, whose anatomy is fixed, "
                f"but is {getattr(config, key)!r}. Or choose other weights."
            )


def _checkpoint_activations(model: MaskDINO, config: ModelConfig) -> None:
    try:
        model.backbone.set_activation_checkpointing()
    # what timm raises for families without the switch
    except (AssertionError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"`model.activation_checkpointing` must be false for {config.backbone!r}: timm has no switch for it."
        ) from error


def describe_base(model: MaskDINO, config: ModelConfig) -> str:
    """Such as `mask_dino over resnet50 (pretrained)`."""
    return f"{config.name} over {model.backbone.name} ({config.weights})"
