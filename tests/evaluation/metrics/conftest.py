"""Random annotations with results, and the RLE of a polygon."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils


@pytest.fixture(scope="session")
def random_case() -> Callable[..., Any]:
    """Function that makes annotations and results from a seed."""
    return _random_case


@pytest.fixture(scope="session")
def polygon_rle() -> Callable[..., dict[str, Any]]:
    """Function that encodes a polygon as compressed RLE."""
    return _polygon_rle


def _rectangle(generator: np.random.Generator, size: tuple[int, int]) -> list[float]:
    """Return a random rectangle as a polygon. size: height, width"""
    height, width = size
    sides = generator.integers(2, 60, 2) * generator.integers(1, 4)
    left, top = generator.integers(0, width - 4), generator.integers(0, height - 4)
    right, bottom = min(left + sides[0], width), min(top + sides[1], height)
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


def _polygon_rle(polygon: list[float], size: tuple[int, int]) -> dict[str, Any]:
    """Return the compressed RLE of a polygon x1, y1, x2, y2, ... in pixels. size: height, width"""
    (rle,) = mask_utils.frPyObjects([polygon], *size)
    return {"size": list(size), "counts": rle["counts"].decode()}


def _random_case(seed: int, num_images: int = 12, sparse: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return random annotations and results near them: crowds, and areas and boxes that differ from the masks.

    sparse: several categories with gaps between their ids, one of them without annotations
    """
    generator = np.random.default_rng(seed)
    category_ids = [90, 3, 17, 2**33] if sparse else [1]
    images = [
        {"id": 2**34 - 5 * idx, "height": int(generator.integers(90, 200)), "width": int(generator.integers(90, 200))}
        for idx in range(num_images)
    ]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        size = (image["height"], image["width"])
        for _ in range(int(generator.integers(0, 9))):
            polygon = _rectangle(generator, size)
            is_crowd = int(generator.random() < 0.15)
            segmentation = {"size": list(size), "counts": _runs(_polygon_rle(polygon, size))} if is_crowd else [polygon]
            box = [polygon[0], polygon[1], polygon[2] - polygon[0], polygon[5] - polygon[1]]
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "iscrowd": is_crowd, "bbox": box}
            annotation |= {"category_id": int(generator.choice(category_ids[:3] if sparse else category_ids))}
            annotations.append(annotation | {"area": box[2] * box[3] * 0.9, "segmentation": segmentation})
            for _ in range(int(generator.integers(0, 3))):
                moved = (np.asarray(polygon) + generator.integers(-4, 5, 8)).clip(0).tolist()
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": annotation["category_id"],
                        "segmentation": _polygon_rle(moved, size),
                        "bbox": (np.asarray(box) + generator.random(4) * 3).tolist(),
                        "score": round(float(generator.random()), 2),
                    }
                )
    categories = [{"id": key, "name": f"class {key}"} for key in category_ids]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def _runs(rle: dict[str, Any]) -> list[int]:
    """Return the uncompressed counts of an RLE."""
    column_major: NDArray[np.uint8] = mask_utils.decode([rle])[:, :, 0].ravel(order="F")
    changes = np.flatnonzero(np.diff(column_major, prepend=0)).tolist()
    counts: list[int] = np.diff([0, *changes, len(column_major)]).tolist()
    return counts
