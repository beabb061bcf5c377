"""Synthetic instance segmentation pictures with exact masks: endless for pretraining, or written as a COCO set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vispeft.data.shapes_camera import photograph
from vispeft.data.shapes_canvas import Canvas
from vispeft.data.shapes_scenes import SHAPE_NAMES, draw_broad
from vispeft.data.shapes_targets import TARGET_NAMES, TARGETS, scanned
from vispeft.data.shapes_textures import Image
from vispeft.errors import DataError


@dataclass(frozen=True)
class Scene:
    """One picture and its instances.

    image: [H, W, 3] uint8 RGB
    masks: [T, H, W] bool, the visible part of each instance; no pixel belongs to two
    labels: [T] int64, indices into the domain's class names
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """A family of synthetic pictures: its class names, how a scene is drawn and how it is photographed."""

    class_names: tuple[str, ...]
    draw: Callable[[np.random.Generator, int, int], Canvas]
    finish: Callable[[np.random.Generator, Image], NDArray[np.uint8]]


DOMAINS: dict[str, Domain] = {
    "broad": Domain(SHAPE_NAMES, draw_broad, photograph),
    "hatched": Domain(TARGET_NAMES, TARGETS["hatched"], scanned),
    "neon": Domain(TARGET_NAMES, TARGETS["neon"], scanned),
    "camouflage": Domain(TARGET_NAMES, TARGETS["camouflage"], scanned),
    "dotted": Domain(TARGET_NAMES, TARGETS["dotted"], scanned),
}

MIN_VISIBLE_PIXELS = 10
MIN_VISIBLE_PART = 0.12
MAX_TRIES = 20


def render_scene(rng: np.random.Generator, size: int | tuple[int, int], *, domain: str = "broad") -> Scene:
    """One random scene of a domain, with at least one instance. `size`: side, or (height, width), in pixels.

    Instances of which occlusion leaves fewer than 10 pixels or 12 % are dropped from the masks. The same generator
    state gives the same scene.
    """
    height, width = (size, size) if isinstance(size, int) else size
    chosen = find_domain(domain)
    if min(height, width) < 32:
        raise DataError(f"`size` must be at least 32 pixels a side, but is {height} x {width}.")
    for _ in range(MAX_TRIES):
        canvas = chosen.draw(rng, height, width)
        kept = _visible(canvas)
        if kept:
            masks = canvas.ids[None] == np.array(kept, np.int16)[:, None, None]
            labels = np.array([canvas.labels[k - 1] for k in kept], np.int64)
            return Scene(chosen.finish(rng, canvas.image), masks, labels)
    raise DataError(
        f"Domain `{domain}` gave {MAX_TRIES} scenes of {height} x {width} without an instance. Use a larger size."
    )


def find_domain(name: str) -> Domain:
    """The domain of a name; an unknown name is an error."""
    if name not in DOMAINS:
        raise DataError(f"`domain` must be one of {', '.join(DOMAINS)}, but is {name!r}.")
    return DOMAINS[name]


def _visible(canvas: Canvas) -> list[int]:
    """Numbers of the instances of which enough can be seen, in painting order."""
    counts = np.bincount(canvas.ids.ravel(), minlength=len(canvas.labels) + 1)
    return [
        k
        for k, full in enumerate(canvas.full_areas, start=1)
        if counts[k] >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_PART * full)
    ]


def write_coco(
    out: Path, *, num_images: int, size: int | tuple[int, int], seed: int, domain: str = "hatched", split: str = "train"
) -> Path:
    """Write a COCO set: `out/images/<split>_00000.png` ... and `out/<split>.json`, whose path it returns.

    Segmentations are compressed RLE, so that holes and hidden parts are exact. The same seed and split give the same
    files.
    """
    if num_images < 1:
        raise DataError(f"`num_images` must be at least 1, but is {num_images}.")
    class_names = find_domain(domain).class_names
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        rng = np.random.default_rng([seed, *split.encode(), image_id])
        scene = render_scene(rng, size, domain=domain)
        height, width = scene.image.shape[:2]
        file_name = f"{split}_{image_id - 1:05d}.png"
        if not cv2.imwrite(str(folder / file_name), scene.image[:, :, ::-1]):
            raise DataError(f"{folder / file_name} could not be written. Is the disk full?")
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(label) + 1, "iscrowd": 0}
            annotations.append(entry | _geometry(mask))
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(class_names, start=1)]
    path = out / f"{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_splits(
    out: Path, *, num_train: int, num_val: int, size: int | tuple[int, int], seed: int, domain: str = "hatched"
) -> tuple[Path, Path]:
    """Write a training and a validation set into one folder. Returns the paths of `train.json` and `val.json`."""
    train = write_coco(out, num_images=num_train, size=size, seed=seed, domain=domain, split="train")
    return train, write_coco(out, num_images=num_val, size=size, seed=seed, domain=domain, split="val")


def _geometry(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO `segmentation`, `area` and `bbox` (x, y, width, height) of a mask [H, W], exact to the pixel."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "area": int(coco_mask.area(rle)),
        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
    }
