from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vispeft.engine.predict_files import find_images
from vispeft.errors import DataError


def picture(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, kind)
    return path


def test_find_images__takes_every_image_of_a_folder_and_tells_the_rest(tmp_path: Path) -> None:
    kinds = {"a.jfif": "JPEG", "b.gif": "GIF", "c.jp2": "JPEG2000", "d": "PNG", "e.JPG": "JPEG"}
    expected = [picture(tmp_path / name, kind) for name, kind in kinds.items()]
    for name in ("._e.JPG", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert find_images([tmp_path]) == expected
    (told,) = caught
    assert str(told.message) == f"{tmp_path}: .DS_Store, ._e.JPG, notes.txt: no image; passed over."


def test_find_images__leaves_earlier_overlays_out(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "a.png")
    assert find_images([tmp_path, image], tmp_path / "out") == [image]


def test_find_images__says_what_a_folder_without_images_holds(tmp_path: Path) -> None:
    (tmp_path / "scan.heic").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"must hold images \(JPEG.*scan\.heic"):
        find_images([tmp_path])
    with pytest.raises(DataError, match="does not exist"):
        find_images([tmp_path / "none"])
