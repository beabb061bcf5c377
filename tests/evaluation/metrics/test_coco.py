"""Metrics are compared with pycocotools called directly, on random data."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from vispeft.coco.results import write_results
from vispeft.coco.rle import to_rle
from vispeft.errors import DataError, VispeftError
from vispeft.evaluation import evaluate_coco

SHARED = Path(__file__).parents[3].parent / "shared"


def _rectangle(generator, size):
    height, width = size
    sides = generator.integers(2, 60, 2) * generator.integers(1, 4)
    left, top = generator.integers(0, width - 4), generator.integers(0, height - 4)
    right, bottom = min(left + sides[0], width), min(top + sides[1], height)
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


def _rle(polygon, size):
    (rle,) = mask_utils.frPyObjects([polygon], *size)
    return {"size": list(size), "counts": rle["counts"].decode()}


def _data(seed, num_images=12, sparse=True):
    """Random annotations (own areas and boxes that differ from the masks', crowd regions) and results near them."""
    generator = np.random.default_rng(seed)
    category_ids = [90, 3, 17, 2**33] if sparse else [1]
    images = [
        {"id": 2**34 - 5 * idx, "height": int(generator.integers(90, 200)), "width": int(generator.integers(90, 200))}
        for idx in range(num_images)
    ]
    annotations, results = [], []
    for image in images:
        size = (image["height"], image["width"])
        for _ in range(int(generator.integers(0, 9))):
            polygon = _rectangle(generator, size)
            is_crowd = int(generator.random() < 0.15)
            segmentation = {"size": list(size), "counts": _runs(_rle(polygon, size))} if is_crowd else [polygon]
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
                        "segmentation": _rle(moved, size),
                        "bbox": (np.asarray(box) + generator.random(4) * 3).tolist(),
                        "score": round(float(generator.random()), 2),
                    }
                )
    categories = [{"id": key, "name": f"class {key}"} for key in category_ids]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def _runs(rle):
    column_major = mask_utils.decode([rle])[:, :, 0].ravel(order="F")
    changes = np.flatnonzero(np.diff(column_major, prepend=0)).tolist()
    return np.diff([0, *changes, len(column_major)]).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_evaluate_coco__equals_pycocotools_to_the_last_digit(seed, pycocotools_evaluation):
    annotations, results = _data(seed)
    before = copy.deepcopy((annotations, results))
    metrics = evaluate_coco(annotations, results)
    for kind, found in (("segm", metrics.segm), ("bbox", metrics.bbox)):
        assert list(found.values()) == pycocotools_evaluation(annotations, results, kind).stats.tolist()
    assert (annotations, results) == before
    assert metrics.segm["AP"] != metrics.bbox["AP"]
    assert ",".join(metrics.segm) == "AP,AP50,AP75,APs,APm,APl,AR1,AR10,AR100,ARs,ARm,ARl"


def test_evaluate_coco__per_category_is_mask_ap(pycocotools_evaluation):
    annotations, results = _data(1)
    precision = pycocotools_evaluation(annotations, results, "segm").eval["precision"][:, :, :, 0, -1]
    per_category = evaluate_coco(annotations, results).per_category
    for idx, key in enumerate([3, 17, 90, 2**33]):
        values = precision[:, :, idx]
        values = values[values > -1]
        assert per_category[f"class {key}"] == (values.mean() if len(values) else -1)
    assert per_category[f"class {2**33}"] == -1


@pytest.mark.parametrize("name", ["facades", "nuclei-fluo"])
def test_evaluate_coco__equals_pycocotools_on_real_annotations(name, pycocotools_evaluation):
    path = SHARED / "data" / name / "val.json"
    if not path.exists():
        pytest.skip("the shared data sets are not here")
    annotations = json.loads(path.read_text())
    generator = np.random.default_rng(0)
    results = []
    for annotation in annotations["annotations"][:300]:
        image = next(item for item in annotations["images"] if item["id"] == annotation["image_id"])
        size = (image["height"], image["width"])
        rle = to_rle(annotation["segmentation"], *size)
        mask = np.roll(mask_utils.decode([rle])[:, :, 0], generator.integers(-3, 4, 2), (0, 1))
        rle = mask_utils.encode(np.asfortranarray(mask))
        result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        segmentation = {"size": list(size), "counts": rle["counts"].decode()}
        results.append(result | {"segmentation": segmentation, "score": float(generator.random())})
    metrics = evaluate_coco(path, results)
    assert metrics.warnings == ()
    for kind, found in (("segm", metrics.segm), ("bbox", metrics.bbox)):
        assert list(found.values()) == pycocotools_evaluation(annotations, results, kind).stats.tolist()


def test_evaluate_coco__from_files_and_paths_as_text(tmp_path):
    annotations, results = _data(2)
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    write_results(tmp_path / "results.json", results)
    from_files = evaluate_coco(str(tmp_path / "annotations.json"), str(tmp_path / "results.json"))
    assert from_files == evaluate_coco(annotations, results)


def test_evaluate_coco__prints_nothing(capsys):
    evaluate_coco(*_data(0))
    assert capsys.readouterr().out == ""


def test_evaluate_coco__sizes_are_mask_areas():
    size = (300, 300)
    thin = [10.0, 10.0, 200.0, 190.0, 200.0, 200.0, 10.0, 20.0]
    rle = _rle(thin, size)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 190, 190], "area": 1900, "iscrowd": 0}
    annotations = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [annotation | {"segmentation": [thin]}],
    }
    other = _rle([200.0, 10.0, 205.0, 10.0, 10.0, 205.0, 10.0, 200.0], size)
    result = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 190, 190]}
    results = [result | {"segmentation": other, "score": 0.9}, result | {"segmentation": rle, "score": 0.8}]
    metrics = evaluate_coco(annotations, results)
    # the false positive covers some 1,000 pixels: small by its mask, large by its box, never medium
    assert metrics.segm["APm"] == pytest.approx(1.0)
    assert metrics.segm["AP50"] == pytest.approx(0.5)


def test_evaluate_coco__no_results_are_all_zero():
    annotations, _ = _data(0, sparse=False)
    metrics = evaluate_coco(annotations, [])
    assert {metrics.segm["AP"], metrics.segm["AR100"], metrics.bbox["AP"], metrics.per_category["class 1"]} == {0.0}
    assert "empty list" in metrics.warnings[0]


def test_evaluate_coco__no_annotations_are_undefined():
    annotations, results = _data(0)
    metrics = evaluate_coco(annotations | {"annotations": []}, results)
    assert set(metrics.segm.values()) == set(metrics.bbox.values()) == set(metrics.per_category.values()) == {-1.0}
    assert "no object to be found" in metrics.warnings[0]


def test_evaluate_coco__annotation_id_zero_is_renumbered_with_a_warning():
    annotations, results = _data(3)
    expected = evaluate_coco(annotations, results)
    shifted = copy.deepcopy(annotations)
    for annotation in shifted["annotations"]:
        annotation["id"] -= 1
    metrics = evaluate_coco(shifted, results)
    assert metrics.to_dict() == expected.to_dict()
    assert "Annotation 0: with id 0" in metrics.warnings[0]


def test_evaluate_coco__duplicate_annotation_ids_keep_all_instances():
    annotations, results = _data(3)
    expected = evaluate_coco(annotations, results)
    annotations["annotations"][1]["id"] = annotations["annotations"][0]["id"]
    metrics = evaluate_coco(annotations, results)
    assert metrics.to_dict() == expected.to_dict()
    assert "used twice" in metrics.warnings[0]


def test_evaluate_coco__what_is_missing_is_filled_in():
    annotations, results = _data(4)
    full = copy.deepcopy(annotations)
    for annotation, bare in zip(full["annotations"], annotations["annotations"], strict=True):
        size = next((i["height"], i["width"]) for i in full["images"] if i["id"] == annotation["image_id"])
        coco_mask = annotation["segmentation"]
        rle = mask_utils.merge(mask_utils.frPyObjects(coco_mask if isinstance(coco_mask, list) else [coco_mask], *size))
        annotation |= {"area": float(mask_utils.area(rle)), "bbox": mask_utils.toBbox(rle).tolist(), "iscrowd": 0}
        for key in ("area", "bbox", "iscrowd"):
            del bare[key]
    assert evaluate_coco(annotations, results).to_dict() == evaluate_coco(full, results).to_dict()


def test_evaluate_coco__categories_of_one_name_are_distinct():
    annotations, results = _data(1)
    for category in annotations["categories"][:2]:
        category["name"] = "disk"
    metrics = evaluate_coco(annotations, results)
    assert list(metrics.per_category) == ["disk (id 3)", "class 17", "disk (id 90)", f"class {2**33}"]
    assert "disk" in metrics.warnings[0]


def test_evaluate_coco__boxes_only(pycocotools_evaluation):
    annotations, results = _data(1)
    for result in results:
        del result["segmentation"]
    metrics = evaluate_coco(annotations, results)
    assert set(metrics.segm.values()) == {-1.0}
    assert list(metrics.bbox.values()) == pycocotools_evaluation(annotations, results, "bbox").stats.tolist()
    assert "boxes only" in metrics.warnings[-1]


def test_evaluate_coco__boxes_without_end_are_scored_without_a_word(recwarn, pycocotools_evaluation):
    annotations, results = _data(1)
    for result in results[::3]:
        result["bbox"] = [0, 0, 1e300, 1e300]
    metrics = evaluate_coco(annotations, results)
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    assert list(metrics.bbox.values()) == pycocotools_evaluation(annotations, results, "bbox").stats.tolist()


def test_evaluate_coco__masks_only(pycocotools_evaluation):
    annotations, results = _data(1)
    for result in results:
        del result["bbox"]
    metrics = evaluate_coco(annotations, results)
    assert list(metrics.bbox.values()) == pycocotools_evaluation(annotations, results, "bbox").stats.tolist()


def test_evaluate_coco__polygons_as_results():
    annotations, results = _data(1)
    expected = evaluate_coco(annotations, results).segm
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        if isinstance(annotation["segmentation"], list):
            result = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {
                "score": 0.5
            }
            results.append(result)
    as_polygons = evaluate_coco(annotations, results).segm
    for result in results:
        if isinstance(result["segmentation"], list):
            result["segmentation"] = _rle(result["segmentation"][0], sizes[result["image_id"]])
    assert as_polygons == evaluate_coco(annotations, results).segm != expected


def _edited(change):
    annotations, results = _data(1)
    change(annotations, results)
    return annotations, results


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
def test_evaluate_coco__refuses_by_name(change, message):
    with pytest.raises(DataError, match=message):
        evaluate_coco(*_edited(change))


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
def test_evaluate_coco__warns_of_single_bad_annotations(change, message):
    annotations, results = _data(1)
    change(annotations["annotations"][4])
    metrics = evaluate_coco(annotations, results)
    assert any(message in warning and "Annotation 5:" in warning for warning in metrics.warnings)


def test_evaluate_coco__nasty_annotation_files_never_end_in_a_traceback():
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


def test_evaluate_coco__whole_floats_are_integers():
    annotations, results = _data(5)
    assert evaluate_coco(*_edited_data(5, _as_floats)).to_dict() == evaluate_coco(annotations, results).to_dict()


def _edited_data(seed, change):
    annotations, results = _data(seed)
    change(annotations, results)
    return annotations, results


def test_evaluate_coco__annotations_without_ids_are_numbered():
    annotations, results = _data(5)
    expected = evaluate_coco(annotations, results).to_dict()
    for annotation in annotations["annotations"]:
        del annotation["id"]
    metrics = evaluate_coco(annotations, results)
    assert metrics.to_dict() == expected
    assert "without an integer `id`; given new ones" in metrics.warnings[0]


def test_evaluate_coco__takes_what_check_takes():
    annotations, results = _data(5)
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
def test_evaluate_coco__refuses_what_check_refuses_and_names_the_remedy(tmp_path, change, message):
    annotations, results = _data(1)
    change(annotations["annotations"][4])
    path = tmp_path / "val.json"
    path.write_text(json.dumps(annotations))
    with pytest.raises(DataError, match=message) as caught:
        evaluate_coco(path, results)
    assert f"`vispeft data check {path} --images FOLDER --fix FIXED`" in str(caught.value)


def test_evaluate_coco__names_every_refusal_at_once():
    annotations, results = _data(1)
    for image in annotations["images"]:
        del image["height"]
    annotations["annotations"][4] |= {"category_id": "3", "segmentation": [1, 1, 9, 1, 9, 9]}
    with pytest.raises(DataError) as caught:
        evaluate_coco(annotations, results)
    told = str(caught.value)
    for part in ("(12 in all) have no positive integer `height` and `width`", "category_id '3'", "flat list"):
        assert part in told


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([1, 1, 9, 1, 9, 9], "result 3 .* one flat list of numbers"),
        ([[[1, 1], [9, 1], [9, 9]]], "result 3 .* pairs"),
        ({"size": [90, 90], "counts": "b'99'"}, "result 3 .* Python bytes"),
    ],
)
def test_evaluate_coco__names_wrong_forms_in_results(segmentation, message):
    annotations, results = _data(1)
    results[3]["segmentation"] = segmentation
    with pytest.raises(DataError, match=message):
        evaluate_coco(annotations, results)
