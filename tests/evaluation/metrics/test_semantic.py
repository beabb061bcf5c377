"""Mean IoU and accuracy equal sums over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vispeft.coco.label_maps import rles_of_map
from vispeft.evaluation import evaluate_semantic

KINDS = {2: "grass", 4: "tree", 7: "lake", 8: "absent"}


def _entries(maps: list[NDArray[Any]]) -> list[dict[str, Any]]:
    """Return a mask for each value of each map, as annotations and as results."""
    return [
        {"id": 100 * image_id + value, "image_id": image_id, "category_id": value, "segmentation": rle, "score": 0.5}
        for image_id, values in enumerate(maps, start=1)
        for value, rle in rles_of_map(values).items()
    ]


def _document(maps: list[NDArray[Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "height": 20, "width": 17} for i in range(1, len(maps) + 1)],
        "categories": [{"id": identifier, "name": name} for identifier, name in KINDS.items()],
        "annotations": _entries(maps),
    }


def test_evaluate_semantic__equals_sums_over_pixels() -> None:
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 2, 4, 7], (20, 17)) for _ in range(3)]
    found = [np.where(rng.random((20, 17)) < 0.6, truth, rng.choice([2, 4, 7], (20, 17))) for truth in truths]
    metrics = evaluate_semantic(_document(truths), _entries(found))
    truth, result = np.stack(truths), np.stack(found)
    labelled = truth > 0
    ious, accuracies = {}, []
    for value, name in KINDS.items():
        hits = ((truth == value) & (result == value)).sum()
        union = (labelled & ((truth == value) | (result == value))).sum()
        ious[name] = hits / union if (truth == value).any() else -1.0
        if (truth == value).any():
            accuracies.append(hits / (truth == value).sum())
    assert metrics.per_category == pytest.approx(ious)
    present = [value for value in ious.values() if value >= 0]
    expected = {
        "mIoU": np.mean(present),
        "pixel_accuracy": (truth == result)[labelled].mean(),
        "mean_accuracy": np.mean(accuracies),
    }
    assert metrics.semantic == pytest.approx(expected)
    assert metrics.to_dict()["miou"] == metrics.semantic["mIoU"]


def test_evaluate_semantic__counts_pixels_without_a_result_as_missed() -> None:
    truth = np.full((20, 17), 2)
    half = truth.copy()
    half[:10] = 0
    metrics = evaluate_semantic(_document([truth]), _entries([half]))
    assert metrics.semantic == {"mIoU": 0.5, "pixel_accuracy": 0.5, "mean_accuracy": 0.5}


def test_evaluate_semantic__takes_empty_results() -> None:
    assert evaluate_semantic(_document([np.full((20, 17), 2)]), []).semantic["mIoU"] == 0.0
