"""Columns of results: the same from files, from lists, and from the reader that checks results one by one."""

import dataclasses
import json

import numpy as np
import pytest

from vispeft.coco import result_columns
from vispeft.coco.result_columns import columns_of, indices_in, read_columns, to_columns
from vispeft.errors import DataError

RESULT = {
    "image_id": 1,
    "category_id": 2,
    "bbox": [0, 0.5, 4, 4],
    "segmentation": {"size": [4, 6], "counts": "0h0"},
    "score": 0.5,
}


def without(*keys):
    return {key: value for key, value in RESULT.items() if key not in keys}


def assert_same(found, expected):
    for field in dataclasses.fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if dataclasses.is_dataclass(other):
            assert_same(one, other)
        elif isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other, strict=True)
        else:
            assert one == other


@pytest.mark.parametrize(
    "results",
    [
        [],
        [RESULT],
        [RESULT, RESULT | {"image_id": 2**62, "score": 1, "extra": {"a": [None]}}],
        [without("bbox"), without("bbox")],
        [without("segmentation") | {"segmentation": None}, without("segmentation")],
    ],
    ids=["empty", "one", "more-keys", "masks", "boxes"],
)
def test_read_columns__plain_results_are_decoded_at_once(tmp_path, monkeypatch, results):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    expected = columns_of(results)
    monkeypatch.setattr(result_columns, "columns_of", None)
    assert_same(read_columns(path), expected)
    assert_same(to_columns(results, "results"), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 7.0},
        {"segmentation": {"size": [4, 6], "counts": [0, 24]}},
        {"segmentation": [[0, 0, 5, 0, 5, 4]]},
        {"segmentation": {"size": [4.0, 6], "counts": "0h0"}},
        {"note": "ü"},
    ],
)
def test_read_columns__others_are_read_one_by_one(tmp_path, change):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, RESULT | change], ensure_ascii=False), encoding="utf-8")
    columns = read_columns(path)
    assert_same(to_columns([RESULT, RESULT | change], "results"), columns)
    segmentations = [RESULT["segmentation"], (RESULT | change)["segmentation"]]
    texts = [columns.others.get(idx, columns.masks.rles(np.array([idx]))[0]) for idx in (0, 1)]
    assert texts == segmentations
    assert columns.image_id.tolist() == [1, (RESULT | change)["image_id"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[{", "write or copy it again"),
        (json.dumps([RESULT]) + "x", "it must hold one value"),
        (json.dumps([RESULT | {"score": float("nan")}]), "finite number as `score`, but has nan"),
        (json.dumps([RESULT | {"score": 2**70}]), "finite number as `score`"),
        (json.dumps([RESULT | {"image_id": 2**70}]), "integer `image_id`"),
        (json.dumps([RESULT | {"category_id": True}]), "integer `category_id`"),
        (json.dumps([RESULT | {"bbox": [0, 0, -1, 1]}]), "sides at least 0"),
        (json.dumps([RESULT, without("bbox")]), "result 1 .* has no `bbox`, though others have one"),
        (json.dumps([without("bbox", "segmentation")]), "neither `bbox` nor `segmentation`"),
        (json.dumps({"results": [RESULT]}), "The list stands under `results`"),
    ],
)
def test_read_columns__faults_have_the_message_of_the_other_reader(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_columns(path)


def test_read_columns__bytes_that_are_no_text(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(json.dumps([RESULT | {"note": "x"}]).encode().replace(b'"x"', b'"\xff"'))
    with pytest.raises(DataError, match="no UTF-8 text"):
        read_columns(path)


def test_indices_in__names_the_first_unknown_id():
    columns = to_columns([RESULT, RESULT | {"image_id": 9}, RESULT | {"category_id": 5}], "results")
    with pytest.raises(DataError, match=r"result 1 .* is for image id 9, which the annotations do not have"):
        indices_in(columns, "results", [1, 3], [2])
    with pytest.raises(DataError, match=r"result 2 .* has category id 5.*\(they have 2, 8\)"):
        indices_in(columns, "results", [1, 9], [2, 8])
    image_idx, category_idx = indices_in(columns, "results", [1, 9], [2, 5])
    assert (image_idx.tolist(), category_idx.tolist()) == ([0, 1, 0], [0, 0, 1])


@pytest.mark.parametrize("change", [{"score": float("nan")}, {"bbox": [0, 0, float("inf"), 1]}, {"image_id": -(2**63)}])
def test_to_columns__refuses_numbers_that_are_none(change):
    with pytest.raises(DataError, match=r"result 1 .*must have"):
        to_columns([RESULT, RESULT | change], "results")
