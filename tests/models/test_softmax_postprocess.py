"""Instances of softmax predictions: scores, labels and the boxes around the masks."""

from __future__ import annotations

import pytest
import torch
from pycocotools import mask as mask_utils

from vispeft.errors import VispeftError
from vispeft.models import DetectionLimits
from vispeft.models.softmax_postprocess import postprocess
from vispeft.structures import ImageMeta, LayerPredictions, Predictions

META = ImageMeta(1, "a.png", 32, 32, 32, 32)


def predictions() -> Predictions:
    """Query 0: class 1, the left upper quarter; query 1: no object; query 2: class 0, an empty mask."""
    features = torch.full((1, 3, 32, 32), -9.0)
    features[0, 0, :16, :16] = 9
    probs = torch.tensor([[0.1, 0.6, 0.3], [0.01, 0.01, 0.98], [0.9, 0.05, 0.05]])
    return Predictions((LayerPredictions(probs.log()[None], None, torch.eye(3)[None]),), features)


def test_postprocess__scores_by_class_and_mask_and_leaves_empty_masks_out() -> None:
    (found,) = postprocess(predictions(), [META], padded_size=(32, 32), limits=DetectionLimits(score_threshold=0.2))
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.scores, torch.tensor([0.6]) * torch.tensor(9.0).sigmoid(), atol=1e-4, rtol=0)


def test_postprocess__boxes_enclose_the_masks() -> None:
    (found,) = postprocess(predictions(), [META], padded_size=(32, 32), limits=DetectionLimits())
    assert len(found) == 2  # both classes of the only query with a mask
    assert found.boxes_xyxy.tolist() == [[0, 0, 16, 16]] * 2
    assert mask_utils.area(found.rles[0]) == 256


def test_postprocess__of_no_instances_is_empty() -> None:
    (found,) = postprocess(predictions(), [META], padded_size=(32, 32), limits=DetectionLimits(score_threshold=0.99))
    assert found.boxes_xyxy.shape == (0, 4)
    assert len(found) == 0


def test_postprocess__refuses_sizes_of_other_images() -> None:
    with pytest.raises(VispeftError, match="`metas` must name 1 images"):
        postprocess(predictions(), [], padded_size=(32, 32), limits=DetectionLimits())
