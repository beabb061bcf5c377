"""Metrics are compared with pycocotools called directly, on random data."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from vispeft.coco.results import write_results
from vispeft.coco.rle import to_rle
from vispeft.evaluation import evaluate_coco

SHARED = Path(__file__).parents[3].parent / "shared"


@pytest.mark.parametrize("seed", range(5))
def test_evaluate_coco__equals_pycocotools_to_the_last_digit(seed, pycocotools_evaluation, random_case):
    annotations, results = random_case(seed)
    before = copy.deepcopy((annotations, results))
    metrics = evaluate_coco(annotations, results)
    for kind, found in (("segm", metrics.segm), ("bbox", metrics.bbox)):
        assert list(found.values()) == pycocotools_evaluation(annotations, results, kind).stats.tolist()
    assert (annotations, results) == before
    assert metrics.segm["AP"] != metrics.bbox["AP"]
    assert ",".join(metrics.segm) == "AP,AP50,AP75,APs,APm,APl,AR1,AR10,AR100,ARs,ARm,ARl"


def test_evaluate_coco__per_category_is_mask_ap(pycocotools_evaluation, random_case):
    annotations, results = random_case(1)
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


def test_evaluate_coco__from_files_and_paths_as_text(tmp_path, random_case):
    annotations, results = random_case(2)
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    write_results(tmp_path / "results.json", results)
    from_files = evaluate_coco(str(tmp_path / "annotations.json"), str(tmp_path / "results.json"))
    assert from_files == evaluate_coco(annotations, results)


def test_evaluate_coco__prints_nothing(capsys, random_case):
    evaluate_coco(*random_case(0))
    assert capsys.readouterr().out == ""


def test_evaluate_coco__sizes_are_mask_areas(polygon_rle):
    size = (300, 300)
    thin = [10.0, 10.0, 200.0, 190.0, 200.0, 200.0, 10.0, 20.0]
    rle = polygon_rle(thin, size)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 190, 190], "area": 1900, "iscrowd": 0}
    annotations = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [annotation | {"segmentation": [thin]}],
    }
    other = polygon_rle([200.0, 10.0, 205.0, 10.0, 10.0, 205.0, 10.0, 200.0], size)
    result = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 190, 190]}
    results = [result | {"segmentation": other, "score": 0.9}, result | {"segmentation": rle, "score": 0.8}]
    metrics = evaluate_coco(annotations, results)
    # the false positive covers some 1,000 pixels: small by its mask, large by its box, never medium
    assert metrics.segm["APm"] == pytest.approx(1.0)
    assert metrics.segm["AP50"] == pytest.approx(0.5)


def test_evaluate_coco__no_results_are_all_zero(random_case):
    annotations, _ = random_case(0, sparse=False)
    metrics = evaluate_coco(annotations, [])
    assert {metrics.segm["AP"], metrics.segm["AR100"], metrics.bbox["AP"], metrics.per_category["class 1"]} == {0.0}
    assert "empty list" in metrics.warnings[0]


def test_evaluate_coco__no_annotations_are_undefined(random_case):
    annotations, results = random_case(0)
    metrics = evaluate_coco(annotations | {"annotations": []}, results)
    assert set(metrics.segm.values()) == set(metrics.bbox.values()) == set(metrics.per_category.values()) == {-1.0}
    assert "no object to detect" in metrics.warnings[0]


def test_evaluate_coco__annotation_id_zero_is_renumbered_with_a_warning(random_case):
    annotations, results = random_case(3)
    expected = evaluate_coco(annotations, results)
    shifted = copy.deepcopy(annotations)
    for annotation in shifted["annotations"]:
        annotation["id"] -= 1
    metrics = evaluate_coco(shifted, results)
    assert metrics.to_dict() == expected.to_dict()
    assert "Annotation 0: with id 0" in metrics.warnings[0]


def test_evaluate_coco__duplicate_annotation_ids_keep_all_instances(random_case):
    annotations, results = random_case(3)
    expected = evaluate_coco(annotations, results)
    annotations["annotations"][1]["id"] = annotations["annotations"][0]["id"]
    metrics = evaluate_coco(annotations, results)
    assert metrics.to_dict() == expected.to_dict()
    assert "used twice" in metrics.warnings[0]


def test_evaluate_coco__missing_fields_are_filled_in(random_case):
    annotations, results = random_case(4)
    full = copy.deepcopy(annotations)
    for annotation, bare in zip(full["annotations"], annotations["annotations"], strict=True):
        size = next((i["height"], i["width"]) for i in full["images"] if i["id"] == annotation["image_id"])
        coco_mask = annotation["segmentation"]
        rle = mask_utils.merge(mask_utils.frPyObjects(coco_mask if isinstance(coco_mask, list) else [coco_mask], *size))
        annotation |= {"area": float(mask_utils.area(rle)), "bbox": mask_utils.toBbox(rle).tolist(), "iscrowd": 0}
        for key in ("area", "bbox", "iscrowd"):
            del bare[key]
    assert evaluate_coco(annotations, results).to_dict() == evaluate_coco(full, results).to_dict()


def test_evaluate_coco__categories_with_the_same_name_stay_distinct(random_case):
    annotations, results = random_case(1)
    for category in annotations["categories"][:2]:
        category["name"] = "disk"
    metrics = evaluate_coco(annotations, results)
    assert list(metrics.per_category) == ["disk (id 3)", "class 17", "disk (id 90)", f"class {2**33}"]
    assert "disk" in metrics.warnings[0]


def test_evaluate_coco__boxes_only(pycocotools_evaluation, random_case):
    annotations, results = random_case(1)
    for result in results:
        del result["segmentation"]
    metrics = evaluate_coco(annotations, results)
    assert set(metrics.segm.values()) == {-1.0}
    assert list(metrics.bbox.values()) == pycocotools_evaluation(annotations, results, "bbox").stats.tolist()
    assert "boxes only" in metrics.warnings[-1]


def test_evaluate_coco__huge_boxes_are_scored_without_a_warning(recwarn, pycocotools_evaluation, random_case):
    annotations, results = random_case(1)
    for result in results[::3]:
        result["bbox"] = [0, 0, 1e300, 1e300]
    metrics = evaluate_coco(annotations, results)
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    assert list(metrics.bbox.values()) == pycocotools_evaluation(annotations, results, "bbox").stats.tolist()


def test_evaluate_coco__masks_only(pycocotools_evaluation, random_case):
    annotations, results = random_case(1)
    for result in results:
        del result["bbox"]
    metrics = evaluate_coco(annotations, results)
    assert list(metrics.bbox.values()) == pycocotools_evaluation(annotations, results, "bbox").stats.tolist()


def test_evaluate_coco__polygons_as_results(random_case, polygon_rle):
    annotations, results = random_case(1)
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
            result["segmentation"] = polygon_rle(result["segmentation"][0], sizes[result["image_id"]])
    assert as_polygons == evaluate_coco(annotations, results).segm != expected
