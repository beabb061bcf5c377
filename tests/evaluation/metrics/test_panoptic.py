"""Panoptic quality equals the formula of panopticapi, written here pixel by pixel."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vispeft.coco.label_maps import rles_of_map
from vispeft.evaluation import evaluate_panoptic

Segments = dict[int, tuple[int, bool]]
CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 11, "name": "road", "isthing": 0},
]


def _official(images: list[tuple[NDArray[Any], Segments, NDArray[Any], Segments]]) -> dict[str, float]:
    """Return PQ, SQ and RQ as `pq_compute_single_core` and `pq_average` of panopticapi define them."""
    iou, tp, fp, fn = defaultdict(float), defaultdict(int), defaultdict(int), defaultdict(int)
    for truth, truths, found, results in images:
        shared: dict[tuple[int, int], int] = defaultdict(int)
        for pair in zip(truth.reshape(-1).tolist(), found.reshape(-1).tolist(), strict=True):
            shared[pair] += 1
        areas = {value: int((truth == value).sum()) for value in truths}
        found_areas = {value: int((found == value).sum()) for value in results}
        matched, found_matched = set(), set()
        for (one, other), intersection in shared.items():
            if one not in truths or other not in results or truths[one][1] or truths[one][0] != results[other][0]:
                continue
            union = areas[one] + found_areas[other] - intersection - shared.get((0, other), 0)
            if intersection / union > 0.5:
                kind = truths[one][0]
                tp[kind] += 1
                iou[kind] += intersection / union
                matched.add(one)
                found_matched.add(other)
        crowds = {}
        for value, (kind, is_crowd) in truths.items():
            if value in matched:
                continue
            if is_crowd:
                crowds[kind] = value
            else:
                fn[kind] += 1
        for value, (kind, _) in results.items():
            if value in found_matched:
                continue
            ignored = shared.get((0, value), 0)
            if kind in crowds:
                ignored += shared.get((crowds[kind], value), 0)
            if ignored / found_areas[value] <= 0.5:
                fp[kind] += 1
    values = {}
    for suffix, flags in (("", (0, 1)), ("_things", (1,)), ("_stuff", (0,))):
        rows = []
        for category in CATEGORIES:
            kind = category["id"]
            total = tp[kind] + 0.5 * fp[kind] + 0.5 * fn[kind]
            if category["isthing"] in flags and total:
                rows.append((iou[kind] / total, iou[kind] / tp[kind] if tp[kind] else 0.0, tp[kind] / total))
        for place, name in enumerate(("PQ", "SQ", "RQ")):
            values[name + suffix] = sum(row[place] for row in rows) / len(rows) if rows else -1.0
    return values


def _drawn(rng: np.random.Generator, *, with_crowds: bool) -> tuple[NDArray[Any], Segments]:
    """Return a map of random rectangles with unlabelled pixels, and the class and crowd flag of each segment."""
    values = np.zeros((24, 30), np.int64)
    segments: Segments = {}
    for value in range(1, 8):
        top, left = int(rng.integers(0, 18)), int(rng.integers(0, 22))
        values[top : top + int(rng.integers(4, 16)), left : left + int(rng.integers(4, 20))] = value
        segments[value] = (CATEGORIES[int(rng.integers(4))]["id"], bool(with_crowds and rng.random() < 0.25))
    return values, {value: kind for value, kind in segments.items() if (values == value).any()}


def _shifted(rng: np.random.Generator, truth: NDArray[Any], segments: Segments) -> tuple[NDArray[Any], Segments]:
    """Return a map near to another one, some classes changed."""
    found = np.roll(truth, tuple(rng.integers(-2, 3, 2)), (0, 1))
    found[rng.random(found.shape) < 0.05] = 0
    kinds = {
        value: (kind if rng.random() < 0.8 else CATEGORIES[int(rng.integers(4))]["id"], False)
        for value, (kind, _) in segments.items()
    }
    return found, {value: kind for value, kind in kinds.items() if (found == value).any()}


def _entries(image_id: int, values: NDArray[Any], segments: Segments) -> list[dict[str, Any]]:
    rles = rles_of_map(values)
    return [
        {
            "image_id": image_id,
            "category_id": kind,
            "iscrowd": int(is_crowd),
            "segmentation": rles[value],
            "score": 1.0,
            "id": 100 * image_id + value,
        }
        for value, (kind, is_crowd) in segments.items()
    ]


@pytest.mark.parametrize("with_crowds", [False, True], ids=["plain", "crowds"])
def test_evaluate_panoptic__equals_panopticapi(with_crowds: bool) -> None:
    rng = np.random.default_rng(5)
    images, annotations, results = [], [], []
    for image_id in range(1, 13):
        truth, truths = _drawn(rng, with_crowds=with_crowds)
        found, found_segments = _shifted(rng, truth, truths)
        images.append((truth, truths, found, found_segments))
        annotations += _entries(image_id, truth, truths)
        results += _entries(image_id, found, found_segments)
    sizes = [{"id": image_id, "height": 24, "width": 30} for image_id in range(1, 13)]
    document = {"images": sizes, "annotations": annotations, "categories": CATEGORIES}
    metrics = evaluate_panoptic(document, results)
    expected = _official(images)
    assert 0.1 < expected["PQ"] < 0.9
    assert metrics.panoptic == pytest.approx(expected, abs=1e-12)


def test_evaluate_panoptic__is_one_for_the_annotations() -> None:
    truth, truths = _drawn(np.random.default_rng(1), with_crowds=False)
    entries = _entries(1, truth, truths)
    document = {"images": [{"id": 1, "height": 24, "width": 30}], "annotations": entries, "categories": CATEGORIES}
    metrics = evaluate_panoptic(document, entries)
    assert metrics.to_dict()["pq"] == 1.0
    absent = {"cat", "dog", "sky", "road"} - {c["name"] for c in CATEGORIES if c["id"] in dict(truths.values())}
    assert {name for name, value in metrics.per_category.items() if value == -1} == absent


def test_evaluate_panoptic__is_zero_without_results() -> None:
    truth, truths = _drawn(np.random.default_rng(1), with_crowds=False)
    document = {
        "images": [{"id": 1, "height": 24, "width": 30}],
        "annotations": _entries(1, truth, truths),
        "categories": CATEGORIES,
    }
    assert evaluate_panoptic(document, []).panoptic["PQ"] == 0.0
