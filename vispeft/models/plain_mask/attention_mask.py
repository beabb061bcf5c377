"""Masked attention of queries that run beside the tokens of a plain ViT."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.structures import LayerPredictions


@torch.no_grad()
def attention_mask(
    layer: LayerPredictions, grid: tuple[int, int], mask_prob: float, *, num_tokens: int
) -> Tensor | None:
    """Return the mask of a block's attention, [B, 1, N, N] bool: queries attend to the patches in their own mask.

    A query is masked with probability `mask_prob`. All other tokens attend everywhere, and every query to all queries
    and to the prefix: an empty mask leaves something to attend to. None where no query can be masked.
    """
    if mask_prob == 0:
        return None
    embeddings, mask_features = layer.mask_embeddings, layer.mask_features
    assert mask_features is not None
    # resizing is linear: that of the features is that of the mask logits, which are larger
    small = F.interpolate(mask_features, grid, mode="bilinear", align_corners=False)
    is_inside = torch.einsum("bqc,bchw->bqhw", embeddings, small.to(embeddings)).flatten(2) > 0  # [B, Q, H W]
    if mask_prob < 1:
        is_free = torch.rand(is_inside.shape[:2], device=is_inside.device) > mask_prob
        is_inside |= is_free[..., None]
    B, Q, num_patches = is_inside.shape
    mask = is_inside.new_ones(B, 1, num_tokens, num_tokens)
    mask[:, 0, :Q, -num_patches:] = is_inside
    return mask
