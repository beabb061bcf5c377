"""Models by name: the only file that knows sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vispeft.errors import ConfigError
from vispeft.io.names import did_you_mean
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.mask_dino.decoder import MaskDINODecoder
from vispeft.models.mask_dino.model import MaskDINO
from vispeft.models.mask_dino.pixel_decoder import PixelDecoder


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


def build_model(
    name: str,
    *,
    backbone: str = "resnet50",
    num_classes: int = 80,
    pretrained: bool = False,
    backbone_weights: str | Path | None = None,
    image_size: int | None = None,
    size: str = "base",
    backbone_options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> MaskDINO:
    """A segmentation model over any timm backbone.

    name: "mask_dino"
    backbone: a timm model; `pretrained` loads timm's weights for it, `backbone_options` go to `timm.create_model`
    backbone_weights: a file of the backbone's weights, in the place of timm's
    image_size: side of the square input in pixels, for backbones that must know it
    size: "base" (published R50), "large" (published Swin-L) or "tiny"; `overrides` change single fields of
    `MaskDINOSize`

    Raises ConfigError for an unknown name, size, backbone or override.
    """
    if name not in MODELS:
        raise ConfigError(
            f"`model.name` must be one of {', '.join(MODELS)}, but is {name!r}.{did_you_mean(name, MODELS)}"
        )
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ConfigError(f"`num_classes` must be at least 1, but is {num_classes!r}.")
    dimensions = _size(size, overrides)
    encoder = Backbone(
        backbone,
        pretrained=pretrained,
        weights=None if backbone_weights is None else Path(backbone_weights).expanduser(),
        image_size=image_size,
        output_norm=dimensions.backbone_norm,
        options=backbone_options,
    )
    _check_levels(encoder, dimensions)
    return MODELS[name](encoder, dimensions, num_classes)


def _check_levels(encoder: Backbone, size: MaskDINOSize) -> None:
    given, wanted = len(encoder.channels), size.num_backbone_levels
    if given < wanted:
        raise ConfigError(
            f"`model.backbone` {encoder.name} is not usable as a multi-scale backbone here: it gives {given} maps, but "
            f"`num_backbone_levels` is {wanted}. Choose another backbone, or set "
            f"model.options={{num_backbone_levels: {given}}}."
        )


def _mask_dino(encoder: Backbone, size: MaskDINOSize, num_classes: int) -> MaskDINO:
    shared = {"dim": size.dim, "num_heads": size.num_heads, "num_points": size.num_points}
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


MODELS = {"mask_dino": _mask_dino}


def _size(name: str, overrides: Mapping[str, Any]) -> MaskDINOSize:
    if name not in SIZES:
        raise ConfigError(
            f"`model.size` must be one of {', '.join(SIZES)}, but is {name!r}.{did_you_mean(name, SIZES)}"
        )
    known = {field.name for field in fields(MaskDINOSize)}
    for key in overrides:
        if key not in known:
            raise ConfigError(
                f"`model.options` has no {key!r}.{did_you_mean(key, known)} It takes {', '.join(sorted(known))}."
            )
    return replace(SIZES[name], **overrides)
