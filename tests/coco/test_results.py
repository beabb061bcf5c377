import json
from dataclasses import replace

import pytest
import torch

from vispeft.coco.results import read_results, to_coco_results, write_results
from vispeft.errors import DataError
from vispeft.structures import Instances

RESULT = {
    "image_id": 1,
    "category_id": 2,
    "bbox": [0, 0, 4, 4],
    "segmentation": {"size": [4, 6], "counts": "0h0"},
    "score": 0.5,
}


def _instances():
    return Instances(
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        boxes_xyxy=torch.tensor([[1.0, 2.0, 4.5, 4.0], [0.0, 0.0, 6.0, 4.0]]),
        rles=[{"size": [4, 6], "counts": "0h0"}, {"size": [4, 6], "counts": "h0"}],
    )


def test_to_coco_results__gives_back_original_ids_and_xywh():
    first, second = to_coco_results(_instances(), 2**40 + 1, [90, 2**33])
    assert first == {
        "image_id": 2**40 + 1,
        "category_id": 2**33,
        "bbox": [1.0, 2.0, 3.5, 2.0],
        "segmentation": {"size": [4, 6], "counts": "0h0"},
        "score": 0.75,
    }
    assert second["category_id"] == 90


def test_to_coco_results__gives_boxes_alone_without_masks():
    instances = replace(_instances(), rles=())
    assert [sorted(result) for result in to_coco_results(instances, 1, [4, 5])] == [
        ["bbox", "category_id", "image_id", "score"]
    ] * 2


def test_write_results__round_trip(tmp_path):
    results = to_coco_results(_instances(), 3, [1, 2])
    write_results(tmp_path / "deep" / "predictions.json", results)
    assert read_results(tmp_path / "deep" / "predictions.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["predictions.json"]


def test_write_results__keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "predictions.json"
    write_results(path, [RESULT])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(path, [RESULT | {"score": float("nan")}])
    assert read_results(path) == [RESULT]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[{", "line 1, column 3.*write or copy it again"),
        ("{}\n{}", "line 2, column 1.*it must hold one value"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff\xfe[", "JSON"),
        ("1" * 5000, "not valid JSON"),
        ('{"images": [], "annotations": []}', "holds an object. This looks like an annotation file"),
        ('{"annotations": [{"score": 1}]}', "The list stands under `annotations`: write it alone"),
        ('{"images": [], "predictions": [{"score": 1}]}', "The list stands under `predictions`"),
        ('{"results": []}', "The list stands under `results`"),
        ('{"images": [{}], "annotations": [{"id": 1}]}', "This looks like an annotation file"),
        ('"results"', "holds a string"),
        ("null", "holds null"),
        ("3", "holds a number"),
        ("[1]", "result 0 .* must be an object, but is a number"),
    ],
)
def test_read_results__files_that_are_no_results(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "a"}, "integer `image_id`, but has 'a'"),
        ({"image_id": True}, "integer `image_id`"),
        ({"image_id": 2**70}, "integer `image_id`"),
        ({"category_id": 1.5}, "integer `category_id`"),
        ({"category_id": None}, "integer `category_id`"),
        ({"score": float("nan")}, "finite number as `score`, but has nan"),
        ({"score": "0.9"}, "finite number as `score`"),
        ({"score": 10**400}, "finite number as `score`"),
        ({"bbox": [0, 0, 1]}, "`bbox` of four finite numbers"),
        ({"bbox": [0, 0, float("inf"), 1]}, "`bbox` of four finite numbers"),
        ({"bbox": [0, 0, -1, 1]}, "sides at least 0"),
        ({"bbox": "0011"}, "`bbox` of four finite numbers"),
        ({"bbox": None, "segmentation": None}, "neither `bbox` nor `segmentation`"),
        ({"segmentation": None}, "no `segmentation`, though others have one"),
        ({"bbox": []}, "no `bbox`, though others have one"),
    ],
)
def test_read_results__names_the_result(tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, RESULT | change]))
    with pytest.raises(DataError, match=f"results.json`: result 1 .*{message}"):
        read_results(path)


def test_read_results__missing_keys(tmp_path):
    path = tmp_path / "results.json"
    for key in ("image_id", "category_id", "score"):
        path.write_text(json.dumps([{name: value for name, value in RESULT.items() if name != key}]))
        with pytest.raises(DataError, match=f"`{key}`, but has none"):
            read_results(path)


def test_read_results__missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none.json` does not exist; check the path"):
        read_results(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"must be a JSON file, but is a folder"):
        read_results(tmp_path)


def test_read_results__whole_floats_are_integers(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT | {"image_id": 7.0, "category_id": 2.0}]))
    (result,) = read_results(path)
    assert (repr(result["image_id"]), repr(result["category_id"])) == ("7", "2")


def test_read_results__tells_all_that_is_wrong_with_the_first_and_counts_the_others(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT, *[RESULT | {"score": "0.9", "image_id": "1"}] * 3]))
    with pytest.raises(DataError, match=r"result 1 .*`image_id`, but has '1'; it .*`score`.*'0.9' \(2 more results"):
        read_results(path)
