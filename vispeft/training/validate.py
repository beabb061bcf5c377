"""Predictions of a model for a whole data set, as COCO results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import nn

from vispeft.coco.results import to_coco_results
from vispeft.models.modes import evaluating
from vispeft.models.tile_merging import WholeImages
from vispeft.structures import AnyBatch, ImageMeta, Instances, Predictions
from vispeft.training.memory import memory_bytes
from vispeft.training.progress import format_bytes, open_progress
from vispeft.training.step import in_float32

T = TypeVar("T")

InstanceFunction = Callable[[Predictions, Sequence[ImageMeta], tuple[int, int]], list[Instances]]
"""Instances of each image from predictions in float32, the images' sizes, and H and W of the padded input."""


def predict_dataset(
    fabric: Fabric,
    model: nn.Module,
    loader: Iterable[AnyBatch],
    instances_of: InstanceFunction,
    category_ids: Sequence[int],
    *,
    num_images: int,
    max_detections: int = 300,
    description: str = "evaluate",
) -> list[dict[str, Any]]:
    """Return COCO results of every image in `loader`, by ascending image id and, within an image, best first.

    Every process gets the results of all: each predicts its own share, and an image in two shares (to
    make them equal) counts once. The model keeps its train or eval mode. Masks are kept as RLE only.

    model: from the loader's inputs to `Predictions`: a model, or its tail
    category_ids: the data set's own id of each contiguous class index
    num_images: images that this process's loader gives, for the progress bar
    max_detections: instances of an image whose tiles are merged
    """
    by_image: dict[int, list[dict[str, Any]]] = {}
    whole = WholeImages(max_detections)
    shown = open_progress(description, num_images, unit="image", is_shown=fabric.is_global_zero)
    # no inference mode: a backbone that caches position tables would pass inference tensors to the next training step
    with evaluating(model), shown as progress:
        for batch in loader:
            for meta, found in whole.of(_predict_batch(fabric, model, batch, instances_of)):
                by_image[meta.image_id] = to_coco_results(found, meta.image_id, category_ids)
            progress.update(len(by_image), format_bytes(memory_bytes(fabric.device)))
    for share in gather_objects(fabric, by_image):
        by_image.update(share)
    return [result for image_id in sorted(by_image) for result in by_image[image_id]]


def gather_objects(fabric: Fabric, value: T) -> list[T]:
    """Return the value of every process, by rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _predict_batch(
    fabric: Fabric,
    model: nn.Module,
    batch: AnyBatch,
    instances_of: InstanceFunction,
) -> list[tuple[ImageMeta, Instances]]:
    inputs = replace(batch, targets=()).to(fabric.device).inputs
    with fabric.autocast():
        predictions = model(inputs)
    instances = instances_of(in_float32(predictions), batch.metas, batch.padded_size)
    return list(zip(batch.metas, instances, strict=True))
