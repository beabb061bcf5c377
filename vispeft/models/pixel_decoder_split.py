"""A model of backbone, pixel decoder and decoder in two parts.

The split is after the pixel decoder where that is frozen, else in or after the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from vispeft.models.backbones.stages import BackboneSplit, split_backbone
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.layers.pixel_decoder import PixelDecoder, PixelFeatures
from vispeft.models.modes import evaluating
from vispeft.models.split import Split, SplitPoint
from vispeft.structures import Predictions, Targets


class PixelDecoderModel(Protocol):
    """Modules that run one after another. decoder: called with the pixel decoder's features and the targets"""

    backbone: Backbone
    pixel_decoder: PixelDecoder

    @property
    def decoder(self) -> nn.Module:
        """Return the decoder."""


def split_pixel_decoder_model(model: PixelDecoderModel, images: Tensor) -> Split:
    """Return the last split of a model with nothing trained before it.

    Trained parameters are those that require gradients. SplitPointError where the backbone's first part is trained.

    images: [B, C, H, W], from which sizes are taken
    """
    if _is_trained(model.backbone) or _is_trained(model.pixel_decoder):
        return _InBackbone(split_backbone(model.backbone, images, name="backbone"))
    with evaluating(model.backbone), evaluating(model.pixel_decoder):
        features = model.pixel_decoder(model.backbone(images))
    return _AfterPixelDecoder(tuple(features.spatial_shapes))


@dataclass(frozen=True)
class _InBackbone:
    """Split in the backbone or after its body."""

    backbone_split: BackboneSplit

    @property
    def point(self) -> SplitPoint:
        return self.backbone_split.point

    def prefix(self, model: PixelDecoderModel, images: Tensor) -> tuple[Tensor, ...]:
        return self.backbone_split.prefix(model.backbone, images)

    def tail(
        self, model: PixelDecoderModel, features: Sequence[Tensor], targets: Sequence[Targets] | None
    ) -> Predictions:
        maps = self.backbone_split.tail(model.backbone, features)
        predictions: Predictions = model.decoder(model.pixel_decoder(maps), targets)
        return predictions


@dataclass(frozen=True)
class _AfterPixelDecoder:
    """Split after the pixel decoder. spatial_shapes: (H, W) of each level of its memory"""

    spatial_shapes: tuple[tuple[int, int], ...]

    @property
    def point(self) -> SplitPoint:
        return SplitPoint(("pixel_decoder",), ("backbone", "pixel_decoder"))

    def prefix(self, model: PixelDecoderModel, images: Tensor) -> tuple[Tensor, ...]:
        features: PixelFeatures = model.pixel_decoder(model.backbone(images))
        return features.memory, features.mask_features

    def tail(
        self, model: PixelDecoderModel, features: Sequence[Tensor], targets: Sequence[Targets] | None
    ) -> Predictions:
        memory, mask_features = features
        pixel_features = PixelFeatures(memory, list(self.spatial_shapes), mask_features)
        predictions: Predictions = model.decoder(pixel_features, targets)
        return predictions


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
