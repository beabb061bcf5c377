"""Instances from predictions of a softmax over classes and "no object": the best (query, class) pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vispeft.models.base import DetectionLimits
from vispeft.models.postprocess import best_instances, check_metas
from vispeft.structures import ImageMeta, Instances, Predictions


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    metas: Sequence[ImageMeta],
    *,
    padded_size: tuple[int, int],
    limits: DetectionLimits,
) -> list[Instances]:
    """Return the instances of every image of a batch, best first, in original pixels; empty masks are left out.

    Scores and limits are those of `best_instances`, boxes enclose the masks.

    padded_size: H and W
    """
    check_metas(predictions, metas)
    # the last entry is "no object"
    probs = predictions.final.class_logits.float().softmax(-1)[..., :-1].nan_to_num(0.0)  # [B, Q, K]
    return [
        best_instances(predictions, i, probs[i], meta, padded_size=padded_size, limits=limits)
        for i, meta in enumerate(metas)
    ]
