"""Ground truth and predictions of validation images, matched, and the choice of images to show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from vispeft.coco.ground_truth import GroundTruth
from vispeft.visualization.outlines import Item, Matching, items_of, match

_MAX_THRESHOLD = 0.5


@dataclass(frozen=True)
class RunPredictions:
    """Predictions of a run from a score threshold on. by_image: results by image id"""

    name: str
    threshold: float
    by_image: Mapping[int, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Gallery:
    """Ground truth and predictions of the validation images. folder: folder of the images"""

    ground_truth: GroundTruth
    folder: Path
    runs: Sequence[RunPredictions]

    @cached_property
    def annotations(self) -> Mapping[int, Sequence[Mapping[str, Any]]]:
        """Annotations by image id."""
        grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in self.ground_truth.annotations:
            grouped[annotation["image_id"]].append(annotation)
        return grouped

    def objects(self, image: Mapping[str, Any], *, is_crowd: bool = False) -> list[Item]:
        """Return the annotated objects of an image, or its crowds."""
        entries = [entry for entry in self.annotations.get(image["id"], []) if bool(entry["iscrowd"]) == is_crowd]
        return items_of(entries, image["height"], image["width"])

    def detections(self, image: Mapping[str, Any], run: RunPredictions) -> tuple[list[Item], Matching]:
        """Return the detections of a run in an image and their matches.

        Unmatched detections inside a crowd of their class are left out.
        """
        items, objects = (
            items_of(run.by_image.get(image["id"], []), image["height"], image["width"]),
            self.objects(image),
        )
        matching = match(objects, items)
        crowds = self.objects(image, is_crowd=True)
        if not crowds or not items:
            return items, matching
        overlaps = mask_utils.iou([one.rle for one in items], [one.rle for one in crowds], [1] * len(crowds))
        kept = [
            item
            for index, item in enumerate(items)
            if matching.iou[index] is not None
            or not any(
                overlaps[index, place] >= 0.5 and crowd.category_id == item.category_id
                for place, crowd in enumerate(crowds)
            )
        ]
        return kept, match(objects, kept)

    def spread_images(self, num_images: int) -> list[Mapping[str, Any]]:
        """Return images with annotations, evenly spaced over the file; without annotations, any images."""
        images = [image for image in self.ground_truth.images if image["id"] in self.annotations]
        images = images or self.ground_truth.images
        num_shown = min(num_images, len(images))
        return [images[(2 * idx + 1) * len(images) // (2 * num_shown)] for idx in range(num_shown)]

    def worst_images(self, num_images: int) -> list[Mapping[str, Any]]:
        """Return images with errors of the first run, lowest F1 first, ties by more errors."""
        if not num_images:
            return []
        ranked = []
        for place, image in enumerate(self.ground_truth.images):
            _, matching = self.detections(image, self.runs[0])
            num_errors = matching.num_false_positives + matching.num_false_negatives
            if num_errors:
                ranked.append((matching.f1, -num_errors, place))
        return [self.ground_truth.images[place] for _, _, place in sorted(ranked)[:num_images]]


def select_predictions(
    name: str, predictions: Sequence[Mapping[str, Any]], ground_truth: GroundTruth, threshold: float | None
) -> RunPredictions:
    """Return the predictions of a run from a score threshold on. threshold: None to choose one by the scores"""
    threshold = _fitting_threshold(predictions, ground_truth) if threshold is None else threshold
    known = ground_truth.category_names
    grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for result in predictions:
        if result["score"] >= threshold and result["category_id"] in known:
            grouped[result["image_id"]].append(result)
    return RunPredictions(name, threshold, grouped)


def _fitting_threshold(predictions: Sequence[Mapping[str, Any]], ground_truth: GroundTruth) -> float:
    """Return the score above which there are as many predictions as annotations, but at most 0.5.

    Scores after a short fine-tuning are low: a threshold of 0.5 would hide the model's detections.
    """
    scores = sorted((result["score"] for result in predictions), reverse=True)
    num_annotations = sum(not annotation["iscrowd"] for annotation in ground_truth.annotations)
    if not scores or not num_annotations:
        return _MAX_THRESHOLD
    return float(min(_MAX_THRESHOLD, scores[min(num_annotations, len(scores)) - 1]))
