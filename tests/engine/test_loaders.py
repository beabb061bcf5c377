import json
import warnings

import pytest
from PIL import Image

from vispeft.config import parse_config
from vispeft.engine.loaders import read_sets


def _sets(tmp_path, *, side=20, categories=("a",), image_size=100):
    """Both splits are one image of 100 x 50 pixels with three squares of the first category."""
    Image.new("RGB", (100, 50)).save(tmp_path / "0.png")
    squares = [
        [5 + 30 * i, 5, 5 + 30 * i + side, 5, 5 + 30 * i + side, 5 + side, 5 + 30 * i, 5 + side] for i in range(3)
    ]
    document = {
        "images": [{"id": 1, "file_name": "0.png", "width": 100, "height": 50}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "segmentation": [square], "iscrowd": 0}
            for i, square in enumerate(squares)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    split = {"annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    return parse_config(
        {"data": {"train": split, "val": split}, "model": {"weights": "bundled", "image_size": image_size}}
    )


def _warnings(config):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read_sets(config)
    return [str(one.message) for one in told]


def test_read_sets__is_silent_on_a_sound_set(tmp_path):
    assert _warnings(_sets(tmp_path)) == []


def test_read_sets__names_classes_that_no_instance_teaches(tmp_path):
    (message,) = _warnings(_sets(tmp_path, categories=("a", "b", "c")))
    assert message.endswith("no instance to learn these classes from: `b`, `c`.")


@pytest.mark.parametrize(
    ("side", "image_size", "remedy"),
    [
        (16, 50, None),
        (15, 50, "set it to 64"),
        (10, 64, "set it to 96"),
        (2, 64, "set it to 416"),
        (1, 64, "set it to 800"),
    ],
)
def test_read_sets__tells_of_objects_too_small_to_find(tmp_path, side, image_size, remedy):
    told = _warnings(_sets(tmp_path, side=side, image_size=image_size))
    if remedy is None:
        assert told == []
    else:
        (message,) = told
        assert remedy in message


def test_read_sets__where_no_size_would_do_it_speaks_of_tiles(tmp_path):
    config = _sets(tmp_path, side=1, image_size=64)
    document = json.loads((tmp_path / "a.json").read_text())
    Image.new("RGB", (1000, 50)).save(tmp_path / "0.png")
    document["images"][0]["width"] = 1000
    (tmp_path / "a.json").write_text(json.dumps(document))
    (message,) = _warnings(config)
    assert "smaller than 0.1 x 0.1 pixels" in message
    assert "cut the images into tiles" in message
