"""Error analysis: metrics against pycocotools, errors and confusion matrix on scenes made by hand."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vispeft.errors import DataError
from vispeft.evaluation.analysis import ErrorAnalysis, analyse_results
from vispeft.evaluation.metrics.coco import evaluate_coco

Function = Callable[..., Any]
Box = tuple[int, int, int, int]


def _scene(
    objects: list[tuple[int, int, Box]], found: list[tuple[int, int, Box, float]], **extra: Any
) -> ErrorAnalysis:
    """Return the analysis of boxes. objects: image, category, box; found: the same and a score"""
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": 100.0} | extra
        for number, (image, category, box) in enumerate(objects, start=1)
    ]
    results = [
        {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        for image, category, box, score in found
    ]
    document = {
        "images": [{"id": number, "height": 100, "width": 100} for number in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    return analyse_results(document, results, num_resamples=100)


OBJECTS = [(1, 1, (0, 0, 10, 10)), (1, 2, (30, 30, 10, 10)), (1, 1, (60, 60, 10, 10)), (2, 1, (80, 0, 10, 10))]
FOUND = [
    (1, 1, (0, 0, 10, 10), 0.9),  # true positive
    (1, 1, (0, 0, 10, 9), 0.8),  # duplicate
    (1, 1, (30, 30, 10, 10), 0.7),  # classification
    (1, 1, (60, 63, 10, 10), 0.6),  # true positive: IoU 0.54
    (2, 1, (80, 4, 10, 10), 0.5),  # localisation: IoU 0.43
    (2, 2, (80, 4, 10, 10), 0.4),  # both
    (2, 2, (0, 50, 10, 10), 0.3),  # background
]


def test_analyse_results__errors_have_their_kinds() -> None:
    errors = _scene(OBJECTS, FOUND).errors
    assert errors.counts == {
        "localisation": 1,
        "classification": 1,
        "duplicate": 1,
        "background": 1,
        "both": 1,
        "missed": 0,
    }
    assert min(errors.gains.values()) == 0
    assert errors.gains["classification"] > errors.gains["localisation"] > 0
    assert errors.gains["duplicate"] > 0
    assert errors.gain_false_negatives > 0


def test_analyse_results__correcting_the_only_kind_of_error_gives_the_best_ap() -> None:
    wrong_class = _scene(OBJECTS, [(image, 3 - category, box, 0.5) for image, category, box in OBJECTS]).errors
    assert (wrong_class.ap50, wrong_class.counts["classification"]) == (0, 4)
    assert wrong_class.gains["classification"] == pytest.approx(1)
    shifted = _scene(OBJECTS, [(i, c, (b[0], b[1] + 4, 10, 10), 0.5) for i, c, b in OBJECTS]).errors
    assert shifted.gains["localisation"] == pytest.approx(1)
    nothing = _scene(OBJECTS[1:], [(1, 2, OBJECTS[1][2], 0.5)]).errors
    assert (nothing.counts["missed"], nothing.ap50) == (2, pytest.approx(0.5))
    assert nothing.gains["missed"] == nothing.gain_false_negatives == pytest.approx(0.5)


def test_analyse_results__one_object_is_corrected_once() -> None:
    found = [(1, 1, (0, 4, 10, 10), 0.9), (1, 1, (0, 5, 10, 10), 0.8)]
    errors = _scene(OBJECTS[:1], found).errors
    assert errors.counts["localisation"] == 2
    assert errors.gains["localisation"] == pytest.approx(1)


def test_analyse_results__confusion() -> None:
    analysis = _scene(OBJECTS, FOUND)
    # counted from the best F1 on, which leaves out the last three
    assert analysis.threshold == 0.6
    assert analysis.confusion.names == ("cat", "dog")
    assert analysis.confusion.counts == ((2, 0, 1), (1, 0, 0), (1, 0, 0))


def test_analyse_results__images() -> None:
    analysis = _scene(OBJECTS, FOUND)
    first, second = analysis.images
    assert (first.true_positives, first.false_positives, first.false_negatives) == (2, 2, 1)
    assert (second.true_positives, second.false_positives, second.false_negatives, second.f1) == (
        0,
        0,
        1,
        0,
    )
    assert first.f1 == pytest.approx(4 / 7)
    assert analysis.worst == (2, 1)


def test_analyse_results__an_image_without_anything_is_not_bad() -> None:
    analysis = _scene(OBJECTS[:1], FOUND[:1])
    assert (analysis.images[1].ap, analysis.images[1].f1) == (-1, -1)
    assert analysis.worst == ()


def test_analyse_results__calibration() -> None:
    box = (0, 0, 10, 10)
    objects = [(1, 1, box), (2, 1, box)]
    found = [(1, 1, box, 0.75), (2, 1, (0, 0, 10, 8), 0.75), (1, 2, (50, 50, 9, 9), 0.25), (2, 2, (50, 50, 9, 9), 0.25)]
    calibration = _scene(objects, found).calibration
    assert calibration is not None
    assert calibration.d_ece == pytest.approx(0.25)
    assert calibration.la_ece == pytest.approx((abs(0.75 - 0.9) + 0.25) / 2)
    assert [(one.count, one.precision, one.iou) for one in calibration.bins] == [(2, 0.0, 0.0), (2, 1.0, 0.9)]
    assert _scene(objects, [(1, 1, box, 3.0)]).calibration is None


def test_analyse_results__crowds_are_neither_errors_nor_confusion() -> None:
    crowd = [(1, 1, (20, 20, 60, 60))]
    objects = [(1, 1, (0, 0, 10, 10))]
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": list(box), "area": 100.0, "iscrowd": is_crowd}
        for number, ((_, _, box), is_crowd) in enumerate([(objects[0], 0), (crowd[0], 1)], start=1)
    ]
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [30, 30, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.8},
    ]
    document = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": annotations,
    }
    analysis = analyse_results(document, results, num_resamples=100)
    assert sum(analysis.errors.counts.values()) == 0
    assert analysis.confusion.counts == ((1, 0), (0, 0))
    assert analysis.metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_analyse_results__metrics_are_those_of_evaluate_coco(seed: int, adversarial_case: Function) -> None:
    annotations, results = adversarial_case(seed)
    analysis, metrics = analyse_results(annotations, results, num_resamples=100), evaluate_coco(annotations, results)
    assert analysis.metrics == dict(metrics.segm)
    assert {one.name: one.ap for one in analysis.categories} == dict(metrics.per_category)
    assert analysis.errors.ap50 == pytest.approx(metrics.segm["AP50"])
    assert analysis.interval.value == pytest.approx(metrics.segm["AP"])
    assert np.mean(list(analysis.precision_recall.mean.values())) == pytest.approx(metrics.segm["AP"])
    assert sum(sum(row) for row in analysis.confusion.counts) > 0
    assert json.loads(json.dumps(analysis.to_dict(), allow_nan=False))["kind"] == "segm"


@pytest.mark.parametrize("seed", [0, 1])
def test_analyse_results__ap_of_images_is_pycocotools_on_one_image(
    seed: int, adversarial_case: Function, pycocotools_evaluation: Function
) -> None:
    annotations, results = adversarial_case(seed, 6)
    analysis = analyse_results(annotations, results, num_resamples=100)
    for image in analysis.images:
        own = [result for result in results if result["image_id"] == image.image_id]
        if own:
            alone = annotations | {"images": [one for one in annotations["images"] if one["id"] == image.image_id]}
            alone["annotations"] = [one for one in annotations["annotations"] if one["image_id"] == image.image_id]
            expected = pycocotools_evaluation(alone, own, "segm").stats[0]
            assert image.ap == pytest.approx(expected, abs=1e-12)


def test_analyse_results__no_results() -> None:
    analysis = _scene(OBJECTS, [])
    assert (analysis.metrics["AP"], analysis.calibration, analysis.errors.counts["missed"]) == (0, None, 4)
    assert analysis.confusion.counts == ((0, 0, 3), (0, 0, 1), (0, 0, 0))


def test_analyse_results__no_objects_is_refused() -> None:
    with pytest.raises(DataError, match="no object to detect"):
        _scene([], FOUND)
