"""Predictions of a model with text prompts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vispeft.models.wrappers.sam3.answers import Answers
from vispeft.structures import Predictions


@dataclass(frozen=True, kw_only=True)
class PromptPredictions(Predictions):
    """Predictions whose query `k Q + q` is query `q` of prompt `k`, with what the prompts' losses need.

    The mask features are the mask logits, one map for each query, and the embeddings are unit vectors.
    """

    answers: Answers

    def mask_logits(self, image_idx: int, query_idx: Tensor) -> Tensor:
        """Mask logits of some queries of one image. query_idx: [N] int64. Returns [N, h, w]."""
        # products with unit vectors would spread what is not finite in one mask to all
        return self.mask_features[image_idx].index_select(0, query_idx)
