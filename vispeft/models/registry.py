"""Model families by name, and models built from plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.errors import ConfigError
from vispeft.io.names import did_you_mean
from vispeft.models.base import ModelArguments, SegmentationModel
from vispeft.models.checkpoint_metadata import CheckpointMetadata
from vispeft.models.eomt import transformers_config as eomt_directory
from vispeft.models.eomt import weights as eomt_weights
from vispeft.models.eomt.config import SIZES as EOMT_SIZES
from vispeft.models.eomt.config import build_eomt
from vispeft.models.mask2former import weights as mask2former_weights
from vispeft.models.mask2former.config import SIZES as MASK2FORMER_SIZES
from vispeft.models.mask2former.config import build_mask2former
from vispeft.models.mask2former.transformers_config import read_directory_metadata
from vispeft.models.mask_dino import weights as mask_dino_weights
from vispeft.models.mask_dino.config import SIZES as MASK_DINO_SIZES
from vispeft.models.mask_dino.config import build_mask_dino
from vispeft.models.pmt import weights as pmt_weights
from vispeft.models.pmt.config import SIZES as PMT_SIZES
from vispeft.models.pmt.config import build_pmt
from vispeft.models.wrappers import weights as transformers_weights
from vispeft.models.wrappers.config import build_transformers
from vispeft.models.wrappers.sam3 import config as sam3_config


@dataclass(frozen=True)
class ModelFamily:
    """Functions of a model family.

    build: returns a model with random weights, except pretrained ones of its encoder
    num_classes_in: returns the number of classes of a weights file or directory; None where it has no class head
    sizes: names of the sizes that `build` knows
    image_size_in: of families whose `build` reads whole models itself, by a directory or a hub's name in the place of
        the backbone: returns the longer side of such a model's input; None for families of weights files
    read_directory: returns the arguments of `build_model` and the image size of a directory of transformers; None for
        families whose arguments must be given beside a directory
    tasks: those that its models can be trained for, by their names in a configuration
    """

    build: Callable[[ModelArguments], SegmentationModel]
    num_classes_in: Callable[[Path], int | None]
    sizes: tuple[str, ...]
    image_size_in: Callable[[str], int | None] | None = None
    read_directory: Callable[[Path], CheckpointMetadata] | None = None
    tasks: tuple[str, ...] = ("instance",)

    @property
    def reads_weights(self) -> bool:
        """Return True where `build` reads whole models itself."""
        return self.image_size_in is not None


_LABEL_MAPS = ("instance", "semantic", "panoptic")

FAMILIES: dict[str, ModelFamily] = {
    "mask_dino": ModelFamily(
        build_mask_dino, mask_dino_weights.num_classes_in, tuple(MASK_DINO_SIZES), tasks=(*_LABEL_MAPS, "detection")
    ),
    "mask2former": ModelFamily(
        build_mask2former,
        mask2former_weights.num_classes_in,
        tuple(MASK2FORMER_SIZES),
        read_directory=read_directory_metadata,
        tasks=_LABEL_MAPS,
    ),
    "eomt": ModelFamily(
        build_eomt,
        eomt_weights.num_classes_in,
        tuple(EOMT_SIZES),
        read_directory=eomt_directory.read_directory_metadata,
        tasks=_LABEL_MAPS,
    ),
    "pmt": ModelFamily(build_pmt, pmt_weights.num_classes_in, tuple(PMT_SIZES), tasks=_LABEL_MAPS),
    "transformers": ModelFamily(
        build_transformers,
        transformers_weights.num_classes_in,
        ("base",),
        transformers_weights.image_size_in,
        tasks=_LABEL_MAPS,
    ),
    "sam3": ModelFamily(sam3_config.build_sam3, sam3_config.num_classes_in, ("base",), sam3_config.image_size_in),
}


def family_of(name: str) -> ModelFamily:
    """Return a model family by its name; ConfigError with the nearest names for an unknown one."""
    if name not in FAMILIES:
        raise ConfigError(
            f"`name` must be one of {', '.join(FAMILIES)}, but is {name!r}.{did_you_mean(name, FAMILIES)}"
        )
    return FAMILIES[name]


def build_model(
    name: str,
    *,
    backbone: str = "resnet50",
    num_classes: int = 80,
    pretrained: bool = False,
    backbone_weights: str | Path | None = None,
    image_size: int | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> SegmentationModel:
    """Return a segmentation model over a timm backbone.

    name: "mask_dino" or "mask2former", over any backbone, "eomt" or "pmt", over a plain ViT (`vit_*`), or
        "transformers" or "sam3", for a model of that library, whose directory or hub name is `backbone`
    backbone: a timm model; `pretrained` loads timm's weights for it, `backbone_options` go to `timm.create_model`; its
        `in_chans` may be 1 to 12, and `pixel_mean` and `pixel_std` among them are those of the channels
    backbone_weights: a file of the backbone's weights, in the place of timm's
    image_size: side of the square input in pixels, for backbones that must know it
    options: `size`, such as "base" (the default, published R50), "large" (published Swin-L) or "tiny", and single
        fields of the family's sizes (`MaskDINOSize`, `Mask2FormerSize`, `EoMTSize`, `PMTSize`)

    Raises ConfigError for an unknown name, size, backbone or option.
    """
    family = family_of(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ConfigError(f"`num_classes` must be at least 1, but is {num_classes!r}.")
    size = options.pop("size", "base")
    weights = None if backbone_weights is None else Path(backbone_weights).expanduser()
    arguments = ModelArguments(
        num_classes, backbone, pretrained, weights, image_size, dict(backbone_options or {}), size, options
    )
    return family.build(arguments)
