"""Pictures of validation images with ground truth and predictions, for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vispeft.data.reading.channels import read_for_display
from vispeft.data.reading.folder_scan import inner_path
from vispeft.errors import DataError, VispeftError
from vispeft.report.gallery import Gallery, RunPredictions, select_predictions
from vispeft.report.run_contents import RunContents
from vispeft.visualization.outlines import Canvas, Item, Matching, Outline, Style, draw_outlines, label_size

_MAX_SIDE = 640
# most bytes of one picture in a page
_MAX_BYTES = 120_000
# least width of a picture in its own units, for thin lines and small labels
_MIN_UNITS = 320


@dataclass(frozen=True)
class Panel:
    """The outlines over one picture. note: number of objects, or of true and false positives, as text"""

    caption: str
    note: str
    outlines: Sequence[Outline]


@dataclass(frozen=True)
class Sample:
    """A validation image with its ground truth and the predictions of each run.

    source: data URI of the picture
    width, height: size of the picture in the units of the outlines
    text_size: size of labels in the same units
    """

    file_name: str
    source: str
    width: float
    height: float
    text_size: float
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Samples:
    """Pictures for a page. note: explanation of the pictures, or the reason for their absence"""

    shown: Sequence[Sample]
    worst: Sequence[Sample]
    note: str


def draw_samples(
    runs: Mapping[str, RunContents], *, num_images: int, num_worst: int = 0, threshold: float | None = None
) -> Samples:
    """Draw ground truth and predictions of images spread evenly over the validation set, the same for all runs.

    num_worst: number of additional images, those with the most errors of the first run
    threshold: lowest score of drawn predictions; None to draw about as many as there are annotations; label maps are
        drawn whole
    """
    first = next(iter(runs.values()))
    ground_truth, folder = first.ground_truth, first.images_path
    if ground_truth is None or folder is None or not any(run.predictions for run in runs.values()):
        return Samples(
            (), (), "No pictures: there are no predictions, or the configuration names no validation images."
        )
    if any(run.ground_truth != ground_truth for run in runs.values()):
        return Samples((), (), "No pictures: the runs were not scored on the same validation annotations.")
    selected = [
        select_predictions(name, run.predictions, ground_truth, 0.0 if run.has_label_maps else threshold)
        for name, run in runs.items()
    ]
    gallery = Gallery(ground_truth, folder, selected)
    unreadable: list[str] = []
    shown = _samples(gallery, gallery.spread_images(num_images), unreadable)
    worst = _samples(gallery, gallery.worst_images(num_worst), unreadable)
    reasons = [*dict.fromkeys(unreadable)][:3]
    note = "All predicted segments are shown" if first.has_label_maps else _threshold_note(selected)
    return Samples(shown, worst, ". ".join([note, *(f"Not shown: {text.rstrip('.')}" for text in reasons)]) + ".")


def _threshold_note(runs: Sequence[RunPredictions]) -> str:
    thresholds = [f"{run.threshold:.2f}" if len(runs) == 1 else f"{run.threshold:.2f} ({run.name})" for run in runs]
    return "Predictions are shown from a score of " + ", ".join(thresholds)


def _samples(gallery: Gallery, images: Sequence[Mapping[str, Any]], unreadable: list[str]) -> list[Sample]:
    """Return samples of images. The errors of those that cannot be read are added to `unreadable`."""
    samples = []
    for image in images:
        try:
            samples.append(_sample(gallery, image))
        except VispeftError as error:
            unreadable.append(str(error))
    return samples


def _sample(gallery: Gallery, image: Mapping[str, Any]) -> Sample:
    """Return one image with its ground truth and the predictions of every run."""
    file_name = str(image.get("file_name"))
    path = inner_path(gallery.folder, file_name)
    if path is None:
        raise DataError(f"`{file_name}` is outside of the image folder {gallery.folder}.")
    picture = Image.fromarray(read_for_display(path))
    canvas = _canvas(picture)
    objects, names = gallery.objects(image), gallery.ground_truth.category_names
    found = [gallery.detections(image, run) for run in gallery.runs]
    styles = _object_styles(objects, found[0][1] if len(found) == 1 else None, names)
    outlines, num_left_out = draw_outlines(objects, styles, canvas)
    counted = f"{len(objects)} object{'' if len(objects) == 1 else 's'}"
    panels = [Panel("ground truth", _note(counted, num_left_out), outlines)]
    for run, (items, matching) in zip(gallery.runs, found, strict=True):
        outlines, num_left_out = draw_outlines(items, _detection_styles(items, matching, styles, names), canvas)
        plural = "" if matching.num_false_positives == 1 else "s"
        counts = f"{matching.num_true_positives} of {len(objects)} detected"
        note = f"{counts}, {matching.num_false_positives} false positive{plural}"
        panels.append(Panel(run.name, _note(note, num_left_out), outlines))
    return Sample(file_name, _jpeg(picture), canvas.width, canvas.height, label_size(canvas.width), panels)


def _canvas(picture: Image.Image) -> Canvas:
    """Return the size at which a picture is shown."""
    scale = max(1.0, _MIN_UNITS / picture.width) if picture.width < _MIN_UNITS else 1.0
    scale *= min(1.0, _MAX_SIDE / max(picture.width * scale, picture.height * scale))
    return Canvas(round(picture.width * scale, 1), round(picture.height * scale, 1), scale)


def _object_styles(objects: Sequence[Item], matching: Matching | None, names: Mapping[int, str]) -> list[Style]:
    """Return the styles of annotated objects. matching: matches of a single run; None for several runs"""
    styles = []
    for index, item in enumerate(objects):
        name = names[item.category_id]
        is_detected = matching is None or matching.detection_idx[index] is not None
        state = "" if matching is None else ", detected" if is_detected else ", false negative"
        styles.append(Style(name + state, name if len(names) > 1 else "", _hue(item, index, names), is_detected))
    return styles


def _detection_styles(
    items: Sequence[Item], matching: Matching, object_styles: Sequence[Style], names: Mapping[int, str]
) -> list[Style]:
    """Return the styles of detections. A true positive has the colour of its object, others their own colour."""
    object_of = {detection: index for index, detection in enumerate(matching.detection_idx) if detection is not None}
    styles = []
    for index, (item, iou) in enumerate(zip(items, matching.iou, strict=True)):
        name, score = names[item.category_id], f"{item.score or 0.0:.2f}"
        state = "false positive" if iou is None else f"true positive, IoU {iou:.2f}"
        if index in object_of:
            hue = object_styles[object_of[index]].hue
        else:
            hue = _hue(item, len(object_styles) + index, names)
        label = f"{name} {score}" if len(names) > 1 else score
        styles.append(Style(f"{name}, score {score}, {state}", label, hue, iou is not None))
    return styles


def _hue(item: Item, number: int, names: Mapping[int, str]) -> int:
    """Return a colour number: by class, or `number` if there is one class only."""
    return item.category_id if len(names) > 1 else number


def _note(text: str, num_left_out: int) -> str:
    return f"{text}; {num_left_out} more not drawn" if num_left_out else text


def _jpeg(picture: Image.Image) -> str:
    """Return the picture as a data URI of limited size, scaled down to the width of a page."""
    picture = picture.convert("RGB")
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    for quality in (84, 72, 60, 45, 30, 15):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _MAX_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
