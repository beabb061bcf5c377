"""A handful of validation images with what is there and what was found."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vispeft.data.images import read_picture
from vispeft.errors import VispeftError
from vispeft.evaluation import draw_instances
from vispeft.evaluation.annotations import GroundTruth
from vispeft.evaluation.rle import to_rle
from vispeft.report.run_files import RunFiles
from vispeft.structures import Instances

_MAX_SIDE = 720
_JPEG_QUALITY = 82
_DRAWN_SCORE = 0.5


@dataclass(frozen=True)
class Panel:
    """One picture. source: a data URI that holds it"""

    caption: str
    source: str


@dataclass(frozen=True)
class Sample:
    """A validation image: its truth, and what each of some runs found."""

    file_name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Samples:
    """Pictures for a page. note: what one has to know of them, or why there are none"""

    shown: tuple[Sample, ...]
    note: str


def draw_samples(runs: Mapping[str, RunFiles], *, num_images: int) -> Samples:
    """Truth and predictions of images spread evenly over the validation set, which all runs must share."""
    first = next(iter(runs.values()))
    truth, folder = first.truth, first.images_path
    if truth is None or folder is None or not any(run.predictions for run in runs.values()):
        return Samples((), "No pictures: there are no predictions, or the configuration names no validation images.")
    if any(run.truth != truth for run in runs.values()):
        return Samples((), "No pictures: the runs were not scored on the same validation annotations.")
    thresholds = {name: _threshold(run.predictions, truth) for name, run in runs.items()}
    shown, missing = [], []
    for image in _spread(truth, num_images):
        try:
            shown.append(_sample(image, folder, truth, runs, thresholds))
        except VispeftError as error:
            missing.append(str(error))
    note = "Predictions are shown from a score of " + _listed(thresholds)
    return Samples(tuple(shown), ". ".join([note, *(f"Not shown: {text.rstrip('.')}" for text in missing[:3])]) + ".")


def _threshold(predictions: Sequence[Mapping[str, Any]], truth: GroundTruth) -> float:
    """The score above which there are as many predictions as annotations, but at most one half.

    Scores of a short fine-tuning are low: half would hide what the model has found.
    """
    scores = sorted((result["score"] for result in predictions), reverse=True)
    num_annotations = sum(not annotation["iscrowd"] for annotation in truth.annotations)
    if not scores or not num_annotations:
        return _DRAWN_SCORE
    return float(min(_DRAWN_SCORE, scores[min(num_annotations, len(scores)) - 1]))


def _listed(thresholds: Mapping[str, float]) -> str:
    if len(thresholds) == 1:
        return f"{next(iter(thresholds.values())):.2f}"
    return ", ".join(f"{value:.2f} ({name})" for name, value in thresholds.items())


def _spread(truth: GroundTruth, num_images: int) -> list[dict[str, Any]]:
    """Images that have annotations, evenly spread over the file; if none has any, of all images."""
    counts = Counter(annotation["image_id"] for annotation in truth.annotations)
    images = [image for image in truth.images if counts[image["id"]]] or truth.images
    num_shown = min(num_images, len(images))
    return [images[(2 * idx + 1) * len(images) // (2 * num_shown)] for idx in range(num_shown)]


def _sample(
    image: Mapping[str, Any],
    folder: Path,
    truth: GroundTruth,
    runs: Mapping[str, RunFiles],
    thresholds: Mapping[str, float],
) -> Sample:
    """One image, drawn with its truth and with every run's predictions."""
    file_name = str(image.get("file_name"))
    pixels = read_picture(folder / file_name).pixels
    class_idx = {category_id: idx for idx, category_id in enumerate(truth.category_names)}
    names = list(truth.category_names.values())
    annotated = [annotation for annotation in truth.annotations if not annotation["iscrowd"]]
    panels = [
        _panel("truth", draw_instances(pixels, _instances(annotated, image, class_idx), names, show_scores=False))
    ]
    for name, run in runs.items():
        found = _instances(run.predictions, image, class_idx)
        panels.append(_panel(name, draw_instances(pixels, found, names, threshold=thresholds[name])))
    return Sample(file_name, tuple(panels))


def _instances(items: Sequence[Mapping[str, Any]], image: Mapping[str, Any], class_idx: Mapping[int, int]) -> Instances:
    """Annotations or results of one image as instances, best first; annotations count as certain."""
    here = [item for item in items if item["image_id"] == image["id"] and item["category_id"] in class_idx]
    kept: dict[str, list[Any]] = defaultdict(list)
    for item in sorted(here, key=lambda item: -item.get("score", 1.0)):
        try:
            kept["rles"].append(to_rle(item.get("segmentation"), image["height"], image["width"]))
        except ValueError:
            continue
        kept["scores"].append(item.get("score", 1.0))
        kept["labels"].append(class_idx[item["category_id"]])
    return Instances(
        scores=torch.tensor(kept["scores"], dtype=torch.float32),
        labels=torch.tensor(kept["labels"], dtype=torch.int64),
        boxes_xyxy=torch.zeros(len(kept["rles"]), 4),
        rles=kept["rles"],
    )


def _panel(caption: str, picture: Image.Image) -> Panel:
    """A picture as JPEG in a data URI, no larger than a page can show."""
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Panel(caption, "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
