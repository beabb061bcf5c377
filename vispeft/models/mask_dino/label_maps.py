"""Class scores of Mask DINO's queries for semantic and panoptic label maps, as in the official inference."""

from __future__ import annotations

from vispeft.models.base import QueryScores
from vispeft.structures import Predictions

PUBLISHED_THRESHOLD = 0.25
"""Least class score of a panoptic segment in the official configurations."""

# a softmax with this temperature sharpens the sigmoid scores, which are made for detection
_TEMPERATURE = 0.06


def query_scores(predictions: Predictions) -> QueryScores:
    """Return the class scores of all queries. predictions: in float32

    A query counts as an object by its sigmoid score, but competes for pixels by the sharpened one.
    """
    probs = predictions.final.class_logits.float().sigmoid().nan_to_num(0.0)  # [B, Q, K]
    sharpened = (probs / _TEMPERATURE).softmax(-1)
    weights, labels = sharpened.max(-1)
    return QueryScores(sharpened, probs.amax(-1), labels, weights)
