"""What is known of a published model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

APACHE = "Apache-2.0"
MIT = "MIT"
NON_COMMERCIAL = "CC-BY-NC-4.0"
NOT_CONFIRMED = "not confirmed"

_DATA = (
    "data.train.annotations=train.json data.train.images=images data.val.annotations=val.json data.val.images=images"
)
_COCO = "data.val.annotations=annotations/instances_val2017.json data.val.images=val2017"


@dataclass(frozen=True)
class ZooModel:
    """A whole model with its weights.

    name: as `model.weights` takes it
    title: name of the method, encoder and training set
    family: `model.name`
    weights: address, `hf://` name, or `bundled`
    source: page of its authors
    licence: of the weights, as an SPDX name where it has one
    millions: parameters
    mask_ap: on COCO val2017 by its authors, in percent; None where they give none
    input_rule: size of the network input of that score
    image_size: `model.image_size` that comes next to that rule
    recipe: file of `configs/` for fine-tuning it
    arguments: of `vispeft.build_model`, but for the name, number of classes and image size
    has_timm_encoder: the weights lack the encoder, which timm has
    takes_coco_classes: its classes are the 80 of COCO's instances, in the order of their ids
    note: further facts
    """

    name: str
    title: str
    family: str
    weights: str
    source: str
    licence: str
    millions: float | None
    mask_ap: float | None
    input_rule: str
    image_size: int
    recipe: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    has_timm_encoder: bool = False
    takes_coco_classes: bool = True
    note: str = ""

    @property
    def evaluate_command(self) -> str | None:
        """Return the command that scores it on COCO val2017; None for other classes than COCO's 80."""
        return f"vispeft evaluate {self.name} {_COCO}" if self.takes_coco_classes else None

    @property
    def train_command(self) -> str:
        """Return the command of the recommended recipe."""
        weights = "" if self.weights == self.name else f"model.weights={self.name} "
        return f"vispeft train configs/{self.recipe} {weights}{_DATA}"


@dataclass(frozen=True)
class Backbone:
    """An encoder of timm that is worth a try; any other one is used the same way.

    name: as `model.backbone` takes it
    millions: parameters
    families: `model.name` that it suits
    """

    name: str
    title: str
    source: str
    licence: str
    millions: float
    families: tuple[str, ...]
    note: str = ""
