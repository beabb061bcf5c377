"""AP of image weights, compared with pycocotools on the resampled set."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vispeft.evaluation.metrics.accumulate import accumulate, coco_stats
from vispeft.evaluation.metrics.coco import read_scored
from vispeft.evaluation.statistics.bootstrap import Records, plain_ap, records_of, resample_images, weighted_ap

Function = Callable[..., Any]


def _records(annotations: dict[str, Any], results: list[dict[str, Any]], kind: str = "segm") -> Records:
    scored = read_scored(annotations, results)
    return records_of(scored.match(kind), len(scored.image_ids), len(scored.category_ids))


def _with_distinct_scores(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make all scores distinct: with ties, copies of an image would be sorted in another order than weights imply."""
    scores = np.random.default_rng(0).permutation(len(results)) / len(results)
    return [result | {"score": float(score)} for result, score in zip(results, scores, strict=True)]


def _drawn(annotations: dict[str, Any], results: list[dict[str, Any]], weights: np.ndarray) -> tuple[Any, Any]:
    """Return the resampled set with each copy of an image as a separate image."""
    annotations, old = copy.deepcopy(annotations), annotations
    ids = sorted(image["id"] for image in old["images"])
    copies = {key: [1000 * key + n for n in range(weight)] for key, weight in zip(ids, weights.tolist(), strict=True)}
    annotations["images"] = [image | {"id": new} for image in old["images"] for new in copies[image["id"]]]
    entries = [entry | {"image_id": new} for entry in old["annotations"] for new in copies[entry["image_id"]]]
    annotations["annotations"] = [entry | {"id": number} for number, entry in enumerate(entries, start=1)]
    return annotations, [result | {"image_id": new} for result in results for new in copies[result["image_id"]]]


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_weighted_ap__is_pycocotools_on_the_resampled_set(
    seed: int, adversarial_case: Function, pycocotools_evaluation: Function
) -> None:
    annotations, results = adversarial_case(seed)
    results = _with_distinct_scores(results)
    weights = resample_images(10, 5, np.random.default_rng(seed))
    found = {name: weighted_ap(_records(annotations, results), weights, name) for name in ("AP", "AP50", "AP75")}
    for number, row in enumerate(weights):
        expected = pycocotools_evaluation(*_drawn(annotations, results, row), "segm").stats
        assert [found[name][number] for name in found] == pytest.approx(expected[:3].tolist(), abs=1e-12)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(6))
def test_plain_ap__is_the_metric_of_the_whole_set(seed: int, kind: str, adversarial_case: Function) -> None:
    annotations, results = adversarial_case(seed)
    scored = read_scored(annotations, results)
    stats = coco_stats(accumulate(scored.match(kind), len(scored.category_ids)))
    for name in ("AP", "AP50", "AP75"):
        assert plain_ap(_records(annotations, results, kind), name) == pytest.approx(stats[name], abs=1e-12)


def test_weighted_ap__without_objects_is_undefined(adversarial_case: Function) -> None:
    annotations, results = adversarial_case(1)
    records = _records(annotations, results)
    weights = (records.num_objects.sum(axis=0) == 0).astype(np.int64)[None]
    assert weights.any()
    assert np.isnan(weighted_ap(records, weights)).all()


def test_weighted_ap__in_parts_is_the_same(adversarial_case: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    records = _records(*adversarial_case(2))
    weights = resample_images(10, 50, np.random.default_rng(0))
    whole = weighted_ap(records, weights)
    monkeypatch.setattr("vispeft.evaluation.statistics.bootstrap._NUM_TOGETHER", 7)
    np.testing.assert_array_equal(weighted_ap(records, weights), whole)


def test_resample_images__draws_as_many_as_there_are() -> None:
    weights = resample_images(7, 100, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 7).all()
    assert weights.shape == (100, 7)
    assert weights.max() > 2
