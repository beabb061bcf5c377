"""Blocks of a plain ViT that can be computed once: those with nothing trained in them or before them."""

from __future__ import annotations

from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.split import SplitPointError, is_under


def num_frozen_blocks(encoder: PlainViT, name: str) -> int:
    """Return the number of blocks before the first one that is trained. Trained parameters require gradients.

    Raises SplitPointError where the first block, or anything that runs before it, is trained.

    name: of the encoder in its model
    """
    body = f"{name}.body"
    trained = [n for n, p in encoder.named_parameters(prefix=name, remove_duplicate=False) if p.requires_grad]
    before = [n for n in trained if not is_under(n, (f"{body}.blocks", f"{body}.norm"))]
    if before:
        raise SplitPointError(f"`{before[0]}` is trained, and the first block depends on it")
    blocks = range(encoder.num_blocks)
    count = next((i for i in blocks if any(is_under(n, (f"{body}.blocks.{i}",)) for n in trained)), len(blocks))
    if count == 0:
        raise SplitPointError(f"`{trained[0]}` is trained, and no block before it can be kept by itself")
    return count
