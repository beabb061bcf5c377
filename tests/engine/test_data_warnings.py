import json
import warnings

import pytest
from PIL import Image

from vispeft.data import read_coco
from vispeft.engine.data_warnings import warn_of_crowded_images, warn_of_tiny_objects


def _set(folder, name, sides, size=100):
    """One image of `size` x `size` pixels with a square of each of the sides."""
    Image.new("RGB", (size, size)).save(folder / "0.png")
    squares = [[5, 5, 5 + side, 5, 5 + side, 5 + side, 5, 5 + side] for side in sides]
    document = {
        "images": [{"id": 1, "file_name": "0.png", "width": size, "height": size}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "segmentation": [s]} for i, s in enumerate(squares)
        ],
    }
    path = folder / name
    path.write_text(json.dumps(document))
    return read_coco(path, folder)


def _told(function, *arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments, **options)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("sides", "parts"),
    [
        ([20] * 200 + [1], []),
        ([20] * 9 + [1], ["1 of 10 objects have fewer than 4 pixels", "set it higher, or cut"]),
        ([3] * 10, ["10 of 10 objects have fewer than 4 pixels", "smaller than 1.5 x 1.5", "set it to 288"]),
        ([6] * 10, ["half of the objects are smaller than 3.0 x 3.0 pixels, when"]),
    ],
)
def test_warn_of_tiny_objects__counts_those_that_are_dropped(tmp_path, sides, parts):
    caught = _told(warn_of_tiny_objects, _set(tmp_path, "a.json", sides), 50, 4)
    assert len(caught) == bool(parts)
    for part in parts:
        assert part in caught[0]


@pytest.mark.parametrize(
    ("num_queries", "max_detections", "parts"),
    [
        (12, 12, []),
        (
            10,
            12,
            ["has 12, but the model has 10 queries (`model.num_queries`). Raise it"],
        ),
        (12, 10, ["has 12, but 10 detections are kept per image (`eval.max_detections`). Raise it, or cut"]),
        (10, 10, ["10 queries", "10 detections", "Raise both"]),
    ],
)
def test_warn_of_crowded_images__names_the_limits(tmp_path, num_queries, max_detections, parts):
    train, val = _set(tmp_path, "train.json", [20]), _set(tmp_path, "val.json", [20] * 12)
    caught = _told(warn_of_crowded_images, train, val, num_queries=num_queries, max_detections=max_detections)
    assert len(caught) == bool(parts)
    for part in parts:
        assert part in caught[0]


def test_warn_of_crowded_images__tells_one_file_once_and_of_training_the_queries_alone(tmp_path):
    train, val = _set(tmp_path, "train.json", [20] * 12), _set(tmp_path, "val.json", [20])
    limits = {"num_queries": 10, "max_detections": 5}
    (caught,) = _told(warn_of_crowded_images, train, val, **limits)
    assert "train.json" in caught
    assert "max_detections" not in caught
    assert len(_told(warn_of_crowded_images, train, train, **limits)) == 1
