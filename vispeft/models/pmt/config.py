"""Sizes of PMT and its construction from them: the only file of the family that knows sizes."""

from __future__ import annotations

from dataclasses import dataclass

from vispeft.errors import ConfigError
from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.base import ModelArguments
from vispeft.models.plain_mask.predictor import Predictor
from vispeft.models.pmt.decoder import PlainMaskDecoder
from vispeft.models.pmt.model import PMT
from vispeft.models.sizes import size_of


@dataclass(frozen=True)
class PMTSize:
    """Numbers of PMT beside its encoder. The defaults are those of the published models for COCO instances.

    num_taps: blocks of the encoder whose tokens are taken, evenly spaced up to the last
    num_blocks: blocks of the decoder
    ffn_dim: hidden width of their feed-forward layers; None for the width of the tokens
    """

    num_queries: int = 200
    num_taps: int = 4
    num_blocks: int = 6
    ffn_dim: int | None = None


SIZES: dict[str, PMTSize] = {
    "base": PMTSize(),
    "tiny": PMTSize(num_queries=100, num_taps=2, num_blocks=2),
}


def build_pmt(arguments: ModelArguments) -> PMT:
    """Return a PMT over a plain ViT of timm.

    Raises ConfigError for an unknown size or option, or a backbone that is no plain ViT.
    """
    size = size_of(SIZES, arguments)
    encoder = PlainViT(
        arguments.backbone,
        pretrained=arguments.pretrained,
        weights=arguments.backbone_weights,
        options=arguments.backbone_options,
    )
    if not 1 <= size.num_taps <= encoder.num_blocks:
        raise ConfigError(
            f"`options.num_taps` must be in 1..{encoder.num_blocks} for `backbone` {arguments.backbone!r}, but is "
            f"{size.num_taps}."
        )
    if size.num_blocks < 1:
        raise ConfigError(f"`options.num_blocks` must be at least 1, but is {size.num_blocks}.")
    if encoder.head_dim % 4:
        raise ConfigError(
            f"`backbone` must have attention heads of a multiple of 4 channels, for the rotary positions of the "
            f"decoder, but those of {arguments.backbone!r} have {encoder.head_dim}. Choose another."
        )
    decoder = PlainMaskDecoder(
        encoder.dim,
        num_taps=size.num_taps,
        num_blocks=size.num_blocks,
        num_heads=encoder.dim // encoder.head_dim,
        ffn_dim=size.ffn_dim or encoder.dim,
    )
    predictor = Predictor(encoder.dim, arguments.num_classes, patch_size=max(encoder.patch_size))
    return PMT(encoder, decoder, predictor, num_queries=size.num_queries)
