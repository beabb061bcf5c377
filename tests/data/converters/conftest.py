"""Folders of images, and the areas that a converter writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

AddPictures = Callable[..., None]
Areas = Callable[[], dict[str, list[float]]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An empty folder for images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def add_pictures(images: Path) -> AddPictures:
    """Return a function that writes grey images of 48 x 32 pixels under the given names."""

    def add(*names: str, **options: Any) -> None:
        for name in names:
            path = images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(path, **options)

    return add


@pytest.fixture
def areas(out: Path) -> Areas:
    """Return a function that reads the areas of the instances in the COCO file, by file name of the image."""

    def read() -> dict[str, list[float]]:
        document = json.loads(out.read_text())
        names = {image["id"]: image["file_name"] for image in document["images"]}
        found: dict[str, list[float]] = {name: [] for name in names.values()}
        for annotation in document["annotations"]:
            found[names[annotation["image_id"]]].append(annotation["area"])
        return found

    return read
