"""Sizes of Mask2Former and its construction from them: the only file of the family that knows sizes."""

from __future__ import annotations

from dataclasses import dataclass

from vispeft.errors import ConfigError
from vispeft.models.backbones.timm_encoder import Backbone
from vispeft.models.backbones.timm_models import timm_module_of
from vispeft.models.base import ModelArguments
from vispeft.models.layers.pixel_decoder import PixelDecoder
from vispeft.models.mask2former.decoder import Mask2FormerDecoder
from vispeft.models.mask2former.model import Mask2Former
from vispeft.models.sizes import size_of

_SWIN = "timm.models.swin_transformer"
# levels of the deformable encoder and the masked attention: strides 8, 16 and 32
_NUM_LEVELS = 3


@dataclass(frozen=True)
class Mask2FormerSize:
    """Widths and depths of Mask2Former behind its backbone. The defaults are those of the published models.

    backbone_norm: norms over the backbone's maps; None as published, over a Swin Transformer alone
    """

    dim: int = 256
    ffn_dim: int = 2048
    pixel_decoder_ffn_dim: int = 1024
    pixel_decoder_layers: int = 6
    decoder_layers: int = 9
    num_heads: int = 8
    num_points: int = 4
    mask_dim: int = 256
    num_queries: int = 100
    backbone_norm: bool | None = None


SIZES: dict[str, Mask2FormerSize] = {
    "base": Mask2FormerSize(),
    # the published Swin-L model
    "large": Mask2FormerSize(num_queries=200),
    "tiny": Mask2FormerSize(
        dim=128,
        ffn_dim=512,
        pixel_decoder_ffn_dim=512,
        pixel_decoder_layers=2,
        decoder_layers=3,
        num_heads=4,
        mask_dim=64,
    ),
}


def build_mask2former(arguments: ModelArguments) -> Mask2Former:
    """Return a Mask2Former over any timm backbone.

    Raises ConfigError for an unknown size, backbone or option.
    """
    size = size_of(SIZES, arguments)
    is_swin = timm_module_of(arguments.backbone, arguments.backbone_options) == _SWIN
    encoder = Backbone(
        arguments.backbone,
        pretrained=arguments.pretrained,
        weights=arguments.backbone_weights,
        image_size=arguments.image_size,
        output_norm=is_swin if size.backbone_norm is None else size.backbone_norm,
        options=arguments.backbone_options,
    )
    if len(encoder.channels) < _NUM_LEVELS:
        raise ConfigError(
            f"`backbone` {encoder.name} is not usable as a multi-scale backbone here: it gives {len(encoder.channels)} "
            f"maps, but Mask2Former takes at least {_NUM_LEVELS}. Choose another backbone."
        )
    pixel_decoder = PixelDecoder(
        encoder.channels,
        dim=size.dim,
        ffn_dim=size.pixel_decoder_ffn_dim,
        num_layers=size.pixel_decoder_layers,
        num_backbone_levels=_NUM_LEVELS,
        num_extra_levels=0,
        num_heads=size.num_heads,
        num_points=size.num_points,
        mask_dim=size.mask_dim,
        coarsest_first=True,
    )
    decoder = Mask2FormerDecoder(
        arguments.num_classes,
        dim=size.dim,
        ffn_dim=size.ffn_dim,
        num_layers=size.decoder_layers,
        num_levels=_NUM_LEVELS,
        num_heads=size.num_heads,
        mask_dim=size.mask_dim,
        num_queries=size.num_queries,
    )
    return Mask2Former(encoder, pixel_decoder, decoder)
