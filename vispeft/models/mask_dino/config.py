"""Sizes of Mask DINO and its construction from them: the only file of the family that knows sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.base import ModelArguments
from vispeft.models.layers.pixel_decoder import PixelDecoder
from vispeft.models.mask_dino.decoder import MaskDINODecoder
from vispeft.models.mask_dino.model import MaskDINO
from vispeft.models.sizes import size_of


@dataclass(frozen=True)
class MaskDINOSize:
    """Widths and depths of Mask DINO behind its backbone. The defaults are the published R50 model's.

    pixel_decoder_ffn_dim: None for the decoder's `ffn_dim`; 1024 in the published checkpoints named `hid1024`
    """

    dim: int = 256
    ffn_dim: int = 2048
    pixel_decoder_ffn_dim: int | None = None
    pixel_decoder_layers: int = 6
    decoder_layers: int = 9
    num_heads: int = 8
    num_points: int = 4
    num_backbone_levels: int = 3
    num_extra_levels: int = 1
    mask_dim: int = 256
    num_queries: int = 300
    denoising_budget: int = 100
    denoising_noise: float = 0.4
    inclusive_boxes: bool = False
    backbone_norm: bool = False
    use_mask_position: bool = False


SIZES: dict[str, MaskDINOSize] = {
    "base": MaskDINOSize(),
    # the published Swin-L model: four normalised backbone levels, boxes from bit masks
    "large": MaskDINOSize(num_backbone_levels=4, inclusive_boxes=True, backbone_norm=True),
    "tiny": MaskDINOSize(
        dim=128,
        ffn_dim=512,
        pixel_decoder_layers=2,
        decoder_layers=3,
        num_heads=4,
        num_extra_levels=0,
        mask_dim=64,
        num_queries=100,
        inclusive_boxes=True,
        use_mask_position=True,
    ),
}


def build_mask_dino(arguments: ModelArguments) -> MaskDINO:
    """Return a Mask DINO over any timm backbone.

    Raises ConfigError for an unknown size, backbone or option.
    """
    size = size_of(SIZES, arguments)
    encoder = Backbone(
        arguments.backbone,
        pretrained=arguments.pretrained,
        weights=arguments.backbone_weights,
        image_size=arguments.image_size,
        output_norm=size.backbone_norm,
        options=arguments.backbone_options,
    )
    _check_levels(encoder, size)
    return _joined(encoder, size, arguments.num_classes)


def _check_levels(encoder: Backbone, size: MaskDINOSize) -> None:
    given, wanted = len(encoder.channels), size.num_backbone_levels
    if given < wanted:
        raise ConfigError(
            f"`backbone` {encoder.name} is not usable as a multi-scale backbone here: it gives {given} maps, but "
            f"`num_backbone_levels` is {wanted}. Choose another backbone, or set "
            f"`options.num_backbone_levels` to {given}."
        )


def _joined(encoder: Backbone, size: MaskDINOSize, num_classes: int) -> MaskDINO:
    shared: dict[str, Any] = {"dim": size.dim, "num_heads": size.num_heads, "num_points": size.num_points}
    pixel_decoder = PixelDecoder(
        encoder.channels,
        ffn_dim=size.pixel_decoder_ffn_dim or size.ffn_dim,
        num_layers=size.pixel_decoder_layers,
        num_backbone_levels=size.num_backbone_levels,
        num_extra_levels=size.num_extra_levels,
        mask_dim=size.mask_dim,
        use_mask_position=size.use_mask_position,
        **shared,
    )
    decoder = MaskDINODecoder(
        num_classes,
        ffn_dim=size.ffn_dim,
        num_layers=size.decoder_layers,
        num_levels=pixel_decoder.num_levels,
        mask_dim=size.mask_dim,
        num_queries=size.num_queries,
        denoising_budget=size.denoising_budget,
        denoising_noise=size.denoising_noise,
        inclusive_boxes=size.inclusive_boxes,
        **shared,
    )
    return MaskDINO(encoder, pixel_decoder, decoder)
