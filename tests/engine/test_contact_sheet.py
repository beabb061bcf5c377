from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.data import TrainTransform, read_coco
from vispeft.engine.contact_sheet import class_colours, contact_sheet, draw_masks
from vispeft.errors import ConfigError, DataError


def test_contact_sheet__shows_a_row_per_image(write: Any, folder: Path, document: dict[str, Any]) -> None:
    coco_set = read_coco(write(document), folder)
    plain, augmented = folder.parent / "plain.png", folder.parent / "new" / "augmented.png"
    contact_sheet(coco_set, plain)
    contact_sheet(coco_set, augmented, transform=TrainTransform(64), augmented=2)
    with Image.open(plain) as one, Image.open(augmented) as other:
        assert one.width * 3 - 3 * 8 < other.width * 2 < one.width * 3 + 3 * 8
        assert other.height > one.height
        assert len(np.unique(np.asarray(other).reshape(-1, 3), axis=0)) > 100


def test_contact_sheet__refuses_what_is_no_picture(write: Any, folder: Path, document: dict[str, Any]) -> None:
    coco_set = read_coco(write(document), folder)
    with pytest.raises(DataError, match=r"sheet\.unknown"):
        contact_sheet(coco_set, folder.parent / "sheet.unknown")
    with pytest.raises(ConfigError, match="`count`"):
        contact_sheet(coco_set, folder.parent / "sheet.png", count=0)


def test_class_colours__differ() -> None:
    colours = np.array(class_colours(12), float)
    distances = np.abs(colours[:, None] - colours[None]).sum(2) + 1e9 * np.eye(12)
    assert distances.min() > 40


def test_draw_masks__changes_only_the_masks() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:10, 5:10] = True
    shown = draw_masks(image, mask, [(255, 0, 0)])
    assert (shown[0, 5:10, 0] == 100).all()
    assert (shown[7, 7] == (165, 58, 58)).all()
    assert (image == 100).all()
