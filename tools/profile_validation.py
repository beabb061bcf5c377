#!/usr/bin/env python
"""Profile a validation pass with many small masks: the share of its time outside the model.

    python tools/profile_validation.py --json FILE                        # drawn nuclei, the bundled base
    python tools/profile_validation.py configs/nuclei_histo_lora.yaml     # a recipe's validation set and base

The base predicts each image of the set, in one thread and one image at a time, as training evaluates. Seconds are
processor time per image: `data` is reading and resizing, `model` the forward pass, `masks` the instances at the
image's own size as RLE, `results` the COCO results, `scoring` all metrics of the set, shared among its images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from profile_step import Clock, operators

from vispeft.coco.results import to_coco_results
from vispeft.coco.sets import to_annotations
from vispeft.config import Config, load_config
from vispeft.engine.build import build_base, complete
from vispeft.engine.loaders import Share, read_sets, val_loader
from vispeft.evaluation import evaluate_coco
from vispeft.models import DetectionLimits
from vispeft.training.processor import describe_cpu
from vispeft.training.step import in_float32

ROOT = Path(__file__).resolve().parents[1]
SIDE, NUCLEI = 256, 60


def draw_nuclei(folder: Path, num_images: int) -> Path:
    """Write images with many small dark ellipses and their annotations; return the path of the annotations."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    for image_id in range(1, num_images + 1):
        image = np.full((SIDE, SIDE, 3), 200, np.uint8) + rng.integers(0, 30, (SIDE, SIDE, 3), np.uint8)
        for _ in range(NUCLEI):
            centre, axes = rng.integers(8, SIDE - 8, 2), rng.integers(4, 10, 2)
            angle = int(rng.integers(180))
            outline = np.asarray(cv2.ellipse2Poly(centre.tolist(), axes.tolist(), angle, 0, 360, 20), np.int32)
            cv2.fillPoly(image, [outline], rng.integers(60, 140, 3).tolist())
            x, y, width, height = cv2.boundingRect(outline)
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": [outline.ravel().tolist()],
                    "bbox": [x, y, width, height],
                    "area": float(cv2.contourArea(outline)),
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / "images" / f"{image_id}.png"), image)
        document["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": SIDE, "width": SIDE})
    path = folder / "nuclei.json"
    path.write_text(json.dumps(document))
    return path


@contextmanager
def configured(args: argparse.Namespace) -> Iterator[Config]:
    """Give the configuration of the recipe, or of the bundled base on drawn nuclei."""
    words = ["train.device=cpu", "train.workers=0", *args.words]
    if args.config is not None:
        yield load_config(args.config, words)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = draw_nuclei(Path(folder), args.images)
        for split in ("train", "val"):
            words += [f"data.{split}.annotations={path}", f"data.{split}.images={folder}/images"]
        yield load_config(ROOT / "configs" / "bundled_lora.yaml", [*words, f"model.image_size={SIDE}"])


def validation_pass(config: Config, num_images: int) -> Mapping[str, Any]:
    """Measure the parts of a pass over the validation set, after an image for warming up."""
    sets = read_sets(config)
    config = complete(config, len(sets.train))
    val = sets.val.subset(list(range(min(num_images, len(sets.val)))))
    model = build_base(config, len(val.categories), class_names=val.class_names).eval()
    limits, results, clock = DetectionLimits(config.eval.max_detections), list[dict[str, Any]](), Clock()

    @torch.no_grad()
    def predict(batches: Iterator[Any]) -> None:
        clock.new_step()
        with clock.part("data"):
            batch = next(batches)
        with clock.part("model"):
            predictions = model(batch.inputs)
        with clock.part("masks"):
            found = model.instances(in_float32(predictions), batch.metas, padded_size=batch.padded_size, limits=limits)
        with clock.part("results"):
            for instances, meta in zip(found, batch.metas, strict=True):
                results.extend(to_coco_results(instances, meta.image_id, val.category_ids))

    predict(iter(val_loader(config, val, model, Share())))
    clock.steps.clear()
    results.clear()
    batches = iter(val_loader(config, val, model, Share()))
    for _ in range(len(val)):
        predict(batches)
    annotations = to_annotations(val)
    began = time.process_time()
    evaluate_coco(annotations, results)
    seconds = {part: sum(step[part] for step in clock.steps) / len(val) for part in clock.steps[0]}
    seconds["scoring"] = (time.process_time() - began) / len(val)
    whole = sum(seconds.values())
    return {
        "images": len(val),
        "instances_per_image": round(len(results) / len(val), 1),
        "seconds_per_image": {part: round(value, 5) for part, value in seconds.items()},
        "outside_the_model": round(1 - seconds["model"] / whole, 4),
        "operators": operators(lambda: predict(iter(val_loader(config, val, model, Share())))),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="a recipe; default: the bundled base on drawn nuclei")
    parser.add_argument("words", nargs="*", help="key=value of its configuration")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with configured(args) as config:
        measured = validation_pass(config, args.images)
    for part, value in measured["seconds_per_image"].items():
        print(f"{part:10} {1000 * value:8.1f} ms")
    print(f"{measured['images']} images, {measured['instances_per_image']} instances each")
    print(f"outside the model: {100 * measured['outside_the_model']:.1f} %")
    if args.json:
        data = "drawn nuclei" if args.config is None else args.config.name
        report = {"machine": describe_cpu(), "versions": {"torch": torch.__version__}, "data": data, **measured}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
