"""Sizes of EoMT and its construction from them: the only file of the family that knows sizes."""

from __future__ import annotations

from dataclasses import dataclass

from vispeft.errors import ConfigError
from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.base import ModelArguments
from vispeft.models.eomt.model import EoMT
from vispeft.models.plain_mask.predictor import Predictor
from vispeft.models.sizes import size_of


@dataclass(frozen=True)
class EoMTSize:
    """Numbers of EoMT beside its encoder. The defaults are those of the published models for COCO instances.

    num_blocks: last blocks of the encoder, in which the queries run
    """

    num_queries: int = 200
    num_blocks: int = 4


SIZES: dict[str, EoMTSize] = {
    "base": EoMTSize(),
    "tiny": EoMTSize(num_queries=100, num_blocks=2),
}


def build_eomt(arguments: ModelArguments) -> EoMT:
    """Return an EoMT over a plain ViT of timm.

    Raises ConfigError for an unknown size or option, or a backbone that is no plain ViT.
    """
    size = size_of(SIZES, arguments)
    encoder = PlainViT(
        arguments.backbone,
        pretrained=arguments.pretrained,
        weights=arguments.backbone_weights,
        options=arguments.backbone_options,
    )
    if not 1 <= size.num_blocks < encoder.num_blocks:
        raise ConfigError(
            f"`options.num_blocks` must be in 1..{encoder.num_blocks - 1} for `backbone` {arguments.backbone!r}, but "
            f"is {size.num_blocks}."
        )
    predictor = Predictor(encoder.dim, arguments.num_classes, patch_size=max(encoder.patch_size))
    return EoMT(encoder, predictor, num_queries=size.num_queries, num_last=size.num_blocks)
