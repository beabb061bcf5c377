"""Difficult inputs for COCO evaluation, and the reference values of pycocotools."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Annotations = dict[str, Any]
Results = list[dict[str, Any]]
CaseMaker = Callable[..., tuple[Annotations, Results]]
Reference = Callable[[Annotations, Results, str], COCOeval]
SIZES = ((60, 80), (200, 150), (130, 130))


@pytest.fixture(scope="session")
def adversarial_case() -> CaseMaker:
    """Function that makes annotations and results from a seed (and a number of images)."""
    return _adversarial_case


@pytest.fixture(scope="session")
def pycocotools_evaluation() -> Reference:
    """Function that evaluates annotations and results by masks ("segm") or boxes ("bbox") with pycocotools."""
    return _pycocotools_evaluation


def _rle(box: tuple[int, int, int, int], size: tuple[int, int]) -> dict[str, Any]:
    """Return the RLE of a rectangle: left, top, width, height."""
    left, top, width, height = box
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return {"size": list(size), "counts": mask_utils.encode(mask)["counts"].decode()}


def _adversarial_case(seed: int, num_images: int = 10) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and results with many special cases.

    These are ties in score and IoU, crowds, `ignore`, areas at and near the bounds of size ranges, empty images,
    identical objects, float32 scores, and more than 100 detections of one category in one image.
    """
    generator = np.random.default_rng(seed)
    size, num_categories = SIZES[seed % 3], (1, 3, 2)[seed % 3]
    ids = [int(number) for number in generator.permutation(np.arange(1, num_images + 1)) * 7]
    images = [{"id": number, "height": size[0], "width": size[1]} for number in ids]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(int(generator.choice([0, 1, 2, 5, 12]))):
            boxes.append(_box(generator, size, boxes, 0.3, seed))
            area = generator.choice([boxes[-1][2] * boxes[-1][3], 1024, 9216, 1023.999, 9216.5, 0, 2e10])
            entry = _entry(generator, image["id"], num_categories, boxes[-1], size)
            entry |= {"id": len(annotations) + 1, "iscrowd": int(generator.random() < 0.2), "area": float(area)}
            annotations.append(entry | ({"ignore": 1} if generator.random() < 0.1 else {}))
        for _ in range(int(generator.choice([0, 3, 30, 150]))):
            box = _box(generator, size, boxes, 0.6, seed)
            if generator.random() < 0.5:
                left, top = np.asarray(box[:2]) + generator.integers(-2, 3, 2)
                box = (int(left.clip(0, size[1] - box[2])), int(top.clip(0, size[0] - box[3])), *box[2:])
            score = generator.random()
            score = float((round(score, 1), np.float32(score), score)[seed % 3])
            results.append(_entry(generator, image["id"], num_categories, box, size) | {"score": score})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, num_categories + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _pycocotools_evaluation(annotations: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    """Return the evaluation by pycocotools on copies of the arguments. The mask pass omits boxes."""
    results = copy.deepcopy(results)
    if kind == "segm":
        for result in results:
            result.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _box(
    generator: np.random.Generator,
    size: tuple[int, int],
    earlier: list[tuple[int, int, int, int]],
    repeats: float,
    seed: int,
) -> tuple[int, int, int, int]:
    """Return a rectangle in the image, or an earlier one. Odd seeds use sizes at the bounds of COCO's ranges."""
    if earlier and generator.random() < repeats:
        return earlier[generator.integers(len(earlier))]
    width = int(generator.choice([4, 8, 16, 32, 32, 48, 96]) if seed % 2 else generator.integers(2, 100))
    height = width if seed % 4 < 2 else int(generator.integers(2, 100))
    width, height = min(width, size[1]), min(height, size[0])
    left, top = generator.integers(0, size[1] - width + 1), generator.integers(0, size[0] - height + 1)
    return int(left), int(top), width, height


def _entry(
    generator: np.random.Generator,
    image_id: int,
    num_categories: int,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
) -> dict[str, Any]:
    """Return the keys that annotations and results share."""
    category_id = int(generator.integers(1, num_categories + 1))
    bbox = [float(side) for side in box]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "segmentation": _rle(box, size)}
