"""Published models by name: where their weights are, what they score, how they are used; data without torch."""

from vispeft.zoo.entry import Backbone, ZooModel
from vispeft.zoo.models import BACKBONES, MODELS, find_model

__all__ = ["BACKBONES", "MODELS", "Backbone", "ZooModel", "find_model"]
