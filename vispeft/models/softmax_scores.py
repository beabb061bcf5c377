"""Class scores of queries with a softmax over classes and "no object", for label maps."""

from __future__ import annotations

from vispeft.models.base import PredictsLabelMaps, QueryScores
from vispeft.structures import Predictions

PUBLISHED_THRESHOLD = 0.8
"""Least class probability of a panoptic segment in MaskFormer, Mask2Former and EoMT."""


class SoftmaxLabelMaps(PredictsLabelMaps):
    """Label maps of the families whose last class logit is "no object" (MaskFormer, https://arxiv.org/abs/2107.06278).

    A family inherits this beside `SegmentationModel`.
    """

    @property
    def object_mask_threshold(self) -> float:
        """Return the published 0.8."""
        return PUBLISHED_THRESHOLD

    def query_scores(self, predictions: Predictions) -> QueryScores:
        """Return the class probabilities, and of each query the most probable class. predictions: in float32"""
        probs = predictions.final.class_logits.float().softmax(-1).nan_to_num(0.0)
        num_classes = probs.shape[-1] - 1
        scores, labels = probs.max(-1)
        return QueryScores(probs[..., :-1], scores, labels.masked_fill(labels == num_classes, -1), scores)
