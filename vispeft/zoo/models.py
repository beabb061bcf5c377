"""The table of published models and encoders, and its look-up by name."""

from __future__ import annotations

from vispeft.errors import ConfigError
from vispeft.io.names import did_you_mean
from vispeft.zoo.backbones import BACKBONES
from vispeft.zoo.entry import ZooModel
from vispeft.zoo.mask2former import MASK2FORMER
from vispeft.zoo.mask_dino import MASK_DINO
from vispeft.zoo.others import OTHERS
from vispeft.zoo.plain import PLAIN

MODELS: dict[str, ZooModel] = {model.name: model for model in (*MASK_DINO, *MASK2FORMER, *PLAIN, *OTHERS)}

__all__ = ["BACKBONES", "MODELS", "find_model"]


def find_model(name: str) -> ZooModel:
    """Return a published model by its name; ConfigError with the nearest name for an unknown one."""
    if name not in MODELS:
        raise ConfigError(f"`{name}` is not a model that `vispeft models` lists.{did_you_mean(name, MODELS)}")
    return MODELS[name]
