"""Writers of synthetic COCO sets: images, masks as RLE, areas and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vispeft.errors import DataError
from vispeft.io.json_files import write_json
from vispeft.synthetic.render import find_domain, render_scene


def write_coco(
    out: Path,
    *,
    num_images: int,
    size: int | tuple[int, int],
    seed: int,
    domain: str = "hatched",
    split: str = "train",
    single_class: str | None = None,
) -> Path:
    """Write a COCO set: `out/images/<split>_00000.png` ... and `out/<split>.json`. Return the path of the latter.

    Segmentations are compressed RLE, so that holes and occlusions are exact. The same seed and split give the same
    files. single_class: the one class name of all objects; None keeps the classes of the domain
    """
    if num_images < 1:
        raise DataError(f"`num_images` must be at least 1, but is {num_images}.")
    class_names = find_domain(domain).class_names if single_class is None else (single_class,)
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
            category_id = int(label) + 1 if single_class is None else 1
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
            annotations.append(entry | _geometry(mask))
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(class_names, start=1)]
    path = out / f"{split}.json"
    write_json(path, {"images": images, "annotations": annotations, "categories": categories}, raises=DataError)
    return path


def write_splits(
    out: Path,
    *,
    num_train: int,
    num_val: int,
    size: int | tuple[int, int],
    seed: int,
    domain: str = "hatched",
    single_class: str | None = None,
) -> tuple[Path, Path]:
    """Write a training and a validation set into one folder. Return the paths of `train.json` and `val.json`."""
    train, val = (
        write_coco(out, num_images=count, size=size, seed=seed, domain=domain, split=split, single_class=single_class)
        for split, count in (("train", num_train), ("val", num_val))
    )
    return train, val


def _geometry(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO `segmentation`, `area` and `bbox` (x, y, width, height) of a mask [H, W], exact to the pixel."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "area": int(coco_mask.area(rle)),
        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
    }
