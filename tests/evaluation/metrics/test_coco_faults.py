"""Faulty annotations and results: refused with the name of the entry, or repaired with a warning."""

import json
from pathlib import Path

import pytest

from vispeft.errors import DataError, VispeftError
from vispeft.evaluation import evaluate_coco

SHARED = Path(__file__).parents[3].parent / "shared"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, r: a.pop("annotations"), "must have a list `annotations`"),
        (lambda a, r: a.update(images=[]), "lists no images"),
        (lambda a, r: a["images"][0].update(id="img-001"), "'img-001'\\) has an `id` that is text; ids must be"),
        (lambda a, r: a["images"][0].pop("height"), "`height` and `width`"),
        (lambda a, r: a["images"][0].update(height=0), "`height` and `width`"),
        (lambda a, r: a["images"][1].update(id=a["images"][0]["id"]), "stands for two entries"),
        (lambda a, r: a["annotations"][2].update(category_id=99), "annotation 3 has category_id 99"),
        (lambda a, r: a["annotations"][2].update(image_id="x"), "integer `image_id`"),
        (lambda a, r: a["annotations"][2].update(iscrowd="0"), "annotation 3 has an `iscrowd` that is text"),
        (lambda a, r: a["annotations"].insert(0, {"segments_info": []}), "panoptic"),
        (lambda a, r: r[0].update(image_id=12345), "image id 12345, which the annotations"),
        (lambda a, r: r[0].update(category_id=1), "category id 1, which the"),
        (lambda a, r: r[3]["segmentation"].update(size=[5, 5]), "result 3 .* size 5x5 for an image of"),
        (lambda a, r: r[3]["segmentation"].update(counts="zz"), "result 3 .* cannot be scored"),
        (lambda a, r: r[3].update(segmentation="abc"), "result 3 .* neither an RLE nor"),
    ],
)
def test_evaluate_coco__refusals_name_the_entry(change, message, random_case):
    annotations, results = random_case(1)
    change(annotations, results)
    with pytest.raises(DataError, match=message):
        evaluate_coco(annotations, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("segmentation"), "without segmentation"),
        (lambda a: a.update(segmentation=[]), "without segmentation"),
        (lambda a: a.update(segmentation=[[1, 2, 3, 4]]), "two points"),
        (lambda a: a.update(segmentation={"size": [1, 1], "counts": [1]}), "RLE of size 1x1"),
        (lambda a: a.update(segmentation={"size": [1, 1], "counts": [7]}), "do not add up"),
        (lambda a: a.update(bbox=[0, 0, float("nan"), 1]), "is not a box"),
        (lambda a: a.update(image_id=5), "does not list"),
        (lambda a: a.update(iscrowd=2), "`iscrowd` that is neither 0 nor 1"),
        (lambda a: a.update(area=float("nan")), "`area` that is not a number"),
        (lambda a: (a.pop("segmentation"), a.pop("bbox")), "neither a box nor a mask"),
    ],
)
def test_evaluate_coco__warns_of_single_bad_annotations(change, message, random_case):
    annotations, results = random_case(1)
    change(annotations["annotations"][4])
    metrics = evaluate_coco(annotations, results)
    assert any(message in warning and "Annotation 5:" in warning for warning in metrics.warnings)


def test_evaluate_coco__hostile_annotation_files_never_end_in_a_traceback():
    folder = SHARED / "data" / "nasty-coco"
    if not folder.exists():
        pytest.skip("the shared data sets are not here")
    for path in sorted(folder.glob("*/*.json")):
        is_refused = (path.parent / "expect.txt").read_text().startswith("REFUSE")
        if path.parent.name == "string-image-ids" or (is_refused and path.parent.name != "path-traversal"):
            with pytest.raises(VispeftError, match=path.name):
                evaluate_coco(path, [])
        else:
            evaluate_coco(path, [])


def _as_floats(annotations, results):
    for entry in [*annotations["images"], *annotations["categories"], *annotations["annotations"]]:
        for key in ("id", "image_id", "category_id", "height", "width"):
            if key in entry:
                entry[key] = float(entry[key])
    for result in results:
        result |= {"image_id": float(result["image_id"]), "category_id": float(result["category_id"])}


def test_evaluate_coco__whole_floats_are_integers(random_case):
    annotations, results = random_case(5)
    expected = evaluate_coco(annotations, results).to_dict()
    _as_floats(annotations, results)
    assert evaluate_coco(annotations, results).to_dict() == expected


def test_evaluate_coco__annotations_without_ids_are_numbered(random_case):
    annotations, results = random_case(5)
    expected = evaluate_coco(annotations, results).to_dict()
    for annotation in annotations["annotations"]:
        del annotation["id"]
    metrics = evaluate_coco(annotations, results)
    assert metrics.to_dict() == expected
    assert "without an integer `id`; given new ones" in metrics.warnings[0]


def test_evaluate_coco__accepts_what_check_accepts(random_case):
    annotations, results = random_case(5)
    expected = evaluate_coco(annotations, results).to_dict()
    annotations["images"].append(dict(annotations["images"][0]))
    annotations["categories"].append(dict(annotations["categories"][0]))
    annotations["annotations"].append(None)
    for annotation in annotations["annotations"][:-1]:
        annotation["iscrowd"] = bool(annotation["iscrowd"])
        if isinstance(annotation["segmentation"], list):
            annotation["segmentation"].append([])
    metrics = evaluate_coco(annotations, results)
    assert metrics.to_dict() == expected
    assert any("no object; not scored" in warning for warning in metrics.warnings)
    assert any("with an empty polygon" in warning for warning in metrics.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(segmentation=[1, 1, 9, 1, 9, 9]), "one flat list of numbers"),
        (lambda a: a.update(segmentation=[[[1, 1], [9, 1], [9, 9]]]), "pairs"),
        (lambda a: a.update(segmentation={"size": [9, 9], "counts": "b'99'"}), "Python bytes"),
        (lambda a: a.update(image_id="1"), "no integer `image_id`: it is text"),
        (lambda a: a.update(iscrowd="1"), "`iscrowd` that is text"),
    ],
)
def test_evaluate_coco__refuses_what_check_refuses_and_names_the_remedy(tmp_path, change, message, random_case):
    annotations, results = random_case(1)
    change(annotations["annotations"][4])
    path = tmp_path / "val.json"
    path.write_text(json.dumps(annotations))
    with pytest.raises(DataError, match=message) as caught:
        evaluate_coco(path, results)
    assert f"`vispeft data check {path} --images FOLDER --fix FIXED`" in str(caught.value)


def test_evaluate_coco__names_every_refusal_at_once(random_case):
    annotations, results = random_case(1)
    for image in annotations["images"]:
        del image["height"]
    annotations["annotations"][4] |= {"category_id": "3", "segmentation": [1, 1, 9, 1, 9, 9]}
    with pytest.raises(DataError) as caught:
        evaluate_coco(annotations, results)
    message = str(caught.value)
    for part in ("(12 in all) have no positive integer `height` and `width`", "category_id '3'", "flat list"):
        assert part in message


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([1, 1, 9, 1, 9, 9], "result 3 .* one flat list of numbers"),
        ([[[1, 1], [9, 1], [9, 9]]], "result 3 .* pairs"),
        ({"size": [90, 90], "counts": "b'99'"}, "result 3 .* Python bytes"),
    ],
)
def test_evaluate_coco__names_wrong_forms_in_results(segmentation, message, random_case):
    annotations, results = random_case(1)
    results[3]["segmentation"] = segmentation
    with pytest.raises(DataError, match=message):
        evaluate_coco(annotations, results)
