"""Validation images with ground truth and predictions: some spread over the set, and those with the most errors."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as mask_utils

from vispeft.coco.ground_truth import GroundTruth
from vispeft.data.reading.folder_scan import inner_path
from vispeft.data.reading.images import read_picture
from vispeft.errors import DataError, VispeftError
from vispeft.report.run_files import RunFiles
from vispeft.visualization.outlines import Item, Matching, Outline, items_of, label_size, match, outlines

_MAX_SIDE = 640
# bytes of one picture in a page
_MOST_BYTES = 120_000
_DRAWN_SCORE = 0.5
# the least width of a picture in its own units, so that lines and labels are fine
_MIN_UNITS = 320


@dataclass(frozen=True)
class Panel:
    """The outlines over one picture. note: number of annotations found, or of true positives"""

    caption: str
    note: str
    outlines: Sequence[Outline]


@dataclass(frozen=True)
class Sample:
    """A validation image with its ground truth and the predictions of each run.

    source: a data URI with the picture
    width, height: of the picture, in the units of the outlines
    text_size: of labels, in those units
    """

    file_name: str
    source: str
    width: float
    height: float
    text_size: float
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Samples:
    """Pictures for a page. note: explanation of them, or the reason for their absence"""

    shown: Sequence[Sample]
    worst: Sequence[Sample]
    note: str


@dataclass(frozen=True)
class _Found:
    """Predictions of a run from a score on. by_image: results of each image"""

    name: str
    threshold: float
    by_image: Mapping[int, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class _Gallery:
    """Ground truth and predictions for the pictures. folder: of the validation images"""

    truth: GroundTruth
    folder: Path
    runs: Sequence[_Found]

    @cached_property
    def annotated(self) -> Mapping[int, Sequence[Mapping[str, Any]]]:
        """Annotations by image id."""
        grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in self.truth.annotations:
            grouped[annotation["image_id"]].append(annotation)
        return grouped

    def truths(self, image: Mapping[str, Any]) -> list[Item]:
        """Return the annotated objects of an image."""
        entries = [entry for entry in self.annotated.get(image["id"], []) if not entry["iscrowd"]]
        return items_of(entries, image["height"], image["width"])

    def found(self, image: Mapping[str, Any], run: _Found) -> tuple[list[Item], Matching]:
        """Return a run's detections in an image and their matches.

        Unmatched detections that lie on a crowd of their class are left out.
        """
        items, truths = items_of(run.by_image.get(image["id"], []), image["height"], image["width"]), self.truths(image)
        matching = match(truths, items)
        crowds = [entry for entry in self.annotated.get(image["id"], []) if entry["iscrowd"]]
        crowds_of = items_of(crowds, image["height"], image["width"])
        if not crowds_of or not items:
            return items, matching
        overlaps = mask_utils.iou([one.rle for one in items], [one.rle for one in crowds_of], [1] * len(crowds_of))
        kept = [
            item
            for index, item in enumerate(items)
            if matching.iou[index] is not None
            or not any(
                overlaps[index, place] >= 0.5 and crowd.category_id == item.category_id
                for place, crowd in enumerate(crowds_of)
            )
        ]
        return kept, match(truths, kept)


def draw_samples(
    runs: Mapping[str, RunFiles], *, num_images: int, num_worst: int = 0, threshold: float | None = None
) -> Samples:
    """Draw ground truth and predictions of images spread evenly over the validation set, the same for all runs.

    num_worst: number of additional images, those with the most errors of the first run
    threshold: the score from which on predictions are drawn; None for as many as there are annotations
    """
    first = next(iter(runs.values()))
    truth, folder = first.truth, first.images_path
    if truth is None or folder is None or not any(run.predictions for run in runs.values()):
        return Samples(
            (), (), "No pictures: there are no predictions, or the configuration names no validation images."
        )
    if any(run.truth != truth for run in runs.values()):
        return Samples((), (), "No pictures: the runs were not scored on the same validation annotations.")
    gallery = _Gallery(truth, folder, [_found(name, run.predictions, truth, threshold) for name, run in runs.items()])
    missing: list[str] = []
    shown = _drawn(gallery, _spread(gallery, num_images), missing)
    worst = _drawn(gallery, _worst(gallery, num_worst), missing)
    shares = [f"{run.threshold:.2f}" if len(runs) == 1 else f"{run.threshold:.2f} ({run.name})" for run in gallery.runs]
    note = "Predictions are shown from a score of " + ", ".join(shares)
    texts = dict.fromkeys(missing)
    return Samples(shown, worst, ". ".join([note, *(f"Not shown: {text.rstrip('.')}" for text in [*texts][:3])]) + ".")


def _found(name: str, predictions: Sequence[Mapping[str, Any]], truth: GroundTruth, threshold: float | None) -> _Found:
    threshold = _threshold(predictions, truth) if threshold is None else threshold
    known = truth.category_names
    grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for result in predictions:
        if result["score"] >= threshold and result["category_id"] in known:
            grouped[result["image_id"]].append(result)
    return _Found(name, threshold, grouped)


def _threshold(predictions: Sequence[Mapping[str, Any]], truth: GroundTruth) -> float:
    """Return the score above which there are as many predictions as annotations, but at most 0.5.

    Scores after a short fine-tuning are low: a threshold of 0.5 would hide the model's detections.
    """
    scores = sorted((result["score"] for result in predictions), reverse=True)
    num_annotations = sum(not annotation["iscrowd"] for annotation in truth.annotations)
    if not scores or not num_annotations:
        return _DRAWN_SCORE
    return float(min(_DRAWN_SCORE, scores[min(num_annotations, len(scores)) - 1]))


def _spread(gallery: _Gallery, num_images: int) -> list[dict[str, Any]]:
    """Return images with annotations, evenly spread over the file; if there are no annotations, any images."""
    images = [image for image in gallery.truth.images if image["id"] in gallery.annotated] or gallery.truth.images
    num_shown = min(num_images, len(images))
    return [images[(2 * idx + 1) * len(images) // (2 * num_shown)] for idx in range(num_shown)]


def _worst(gallery: _Gallery, num_images: int) -> list[dict[str, Any]]:
    """Return the images with errors of the first run, lowest F1 first, ties by more errors."""
    if not num_images:
        return []
    judged = []
    for place, image in enumerate(gallery.truth.images):
        _, matching = gallery.found(image, gallery.runs[0])
        num_errors = matching.num_wrong + len(matching.found_by) - matching.num_found
        if num_errors:
            judged.append((matching.score, -num_errors, place))
    return [gallery.truth.images[place] for _, _, place in sorted(judged)[:num_images]]


def _drawn(gallery: _Gallery, images: Sequence[Mapping[str, Any]], missing: list[str]) -> list[Sample]:
    """Return samples of images; those that cannot be read are added to `missing`."""
    samples = []
    for image in images:
        try:
            samples.append(_sample(gallery, image))
        except VispeftError as error:
            missing.append(str(error))
    return samples


def _sample(gallery: _Gallery, image: Mapping[str, Any]) -> Sample:
    """Return one image with its ground truth and the predictions of every run."""
    file_name = str(image.get("file_name"))
    path = inner_path(gallery.folder, file_name)
    if path is None:
        raise DataError(f"`{file_name}` leaves the image folder {gallery.folder}.")
    picture = Image.fromarray(read_picture(path).pixels)
    factor = max(1.0, _MIN_UNITS / picture.width) if picture.width < _MIN_UNITS else 1.0
    factor *= min(1.0, _MAX_SIDE / max(picture.width * factor, picture.height * factor))
    size = round(picture.width * factor, 1), round(picture.height * factor, 1)
    truths = gallery.truths(image)
    found = [gallery.found(image, run) for run in gallery.runs]
    first = found[0][1]
    hues = _hues(truths, len(gallery.truth.category_names))
    names = gallery.truth.category_names
    shows_names = len(names) > 1
    labels = [names[one.category_id] if shows_names else "" for one in truths]
    is_found = [one is not None for one in first.found_by] if len(found) == 1 else [True] * len(truths)
    states = ["found" if one else "missed" for one in is_found] if len(found) == 1 else [""] * len(truths)
    titles = [
        ", ".join(filter(None, (names[one.category_id], state))) for one, state in zip(truths, states, strict=True)
    ]
    drawn, left_out = outlines(truths, titles, labels, hues, is_found, factor=factor, size=size)
    panels = [Panel("truth", _counted(f"{len(truths)} objects", left_out), drawn)]
    for run, (items, matching) in zip(gallery.runs, found, strict=True):
        panels.append(_prediction(run.name, items, matching, truths, hues, names, factor, size))
    return Sample(file_name, _jpeg(picture), *size, label_size(size[0]), panels)


def _prediction(
    name: str,
    items: Sequence[Item],
    matching: Matching,
    truths: Sequence[Item],
    truth_hues: Sequence[int],
    names: Mapping[int, str],
    factor: float,
    size: tuple[float, float],
) -> Panel:
    """Return the panel of a run's predictions: true positives in their annotations' colours, others in their own."""
    of = {detection: index for index, detection in enumerate(matching.found_by) if detection is not None}
    own = _hues(items, len(names), first=len(truths))
    hues = [truth_hues[of[index]] if index in of else own[index] for index in range(len(items))]
    scores = [f"{item.score or 0.0:.2f}" for item in items]
    labels = [
        f"{names[item.category_id]} {score}" if len(names) > 1 else score
        for item, score in zip(items, scores, strict=True)
    ]
    titles = [
        f"{names[item.category_id]}, score {score}, " + ("wrong" if iou is None else f"right, IoU {iou:.2f}")
        for item, score, iou in zip(items, scores, matching.iou, strict=True)
    ]
    is_right = [iou is not None for iou in matching.iou]
    drawn, left_out = outlines(items, titles, labels, hues, is_right, factor=factor, size=size)
    note = f"{matching.num_found} of {len(truths)} found, {matching.num_wrong} wrong"
    return Panel(name, _counted(note, left_out), drawn)


def _hues(items: Sequence[Item], num_classes: int, first: int = 0) -> list[int]:
    """Return colour numbers by class, or by instance if there is one class only."""
    return [item.category_id if num_classes > 1 else first + index for index, item in enumerate(items)]


def _counted(note: str, left_out: int) -> str:
    return f"{note}; {left_out} more not drawn" if left_out else note


def _jpeg(picture: Image.Image) -> str:
    """Return the picture as a data URI of bounded size, no larger than a page can show."""
    picture = picture.convert("RGB")
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    for quality in (84, 72, 60, 45, 30, 15):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _MOST_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
