"""A small COCO set on disk, and ways to change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Writer = Callable[[dict[str, Any]], Path]


def small_document() -> dict[str, Any]:
    """Two 48 x 32 images; a polygon, one of two parts, an RLE and a crowd region; categories 7 and 3."""
    rle = np.zeros((32, 48), int)
    rle[4:14, 30:44] = 1
    flat = rle.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    box = [[20.0, 5.0, 40.0, 5.0, 40.0, 25.0, 20.0, 25.0]]
    parts = [[2, 2, 10, 2, 10, 12, 2, 12], [2, 18, 10, 18, 10, 28, 2, 28]]
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 32, "width": 48},
            {"id": 2, "file_name": "b.png", "height": 32, "width": 48},
        ],
        "categories": [{"id": 7, "name": "box"}, {"id": 3, "name": "pair"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": box, "bbox": [20, 5, 20, 20], "area": 400},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": parts, "bbox": [2, 2, 8, 26], "area": 160},
            {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"size": [32, 48], "counts": counts}},
            {"id": 4, "image_id": 2, "category_id": 7, "segmentation": box, "iscrowd": 1},
        ],
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return small_document()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `images` with a.png and b.png, noise with the first set's box in red."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(60, 120, (32, 48, 3)).astype(np.uint8)
        pixels[5:25, 20:40] = (220, 20, 20)
        Image.fromarray(pixels).save(images / name)
    return images


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def writer(document: dict[str, Any]) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(document))
        return path

    return writer
