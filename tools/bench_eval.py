"""Measure COCO evaluation against pycocotools and others, and the paired bootstrap, on an input of COCO val's size.

    python tools/bench_eval.py [--images 5000] [--repeats 2] [--json tools/results/evaluation_cpu.json]

The input is synthetic: 640 x 480 images with 7.2 objects on average (polygons, one in 80 a crowd), 80 categories, and
100 detections each, half of them near an object. All implementations read files and return the twelve metrics of masks
and of boxes; they run in turn, each in one thread. Processor time is that of the process; wall time also depends on
other programs. All metrics, precisions, recalls and scores are compared with pycocotools' bit by bit; for the others of
`bench_eval_peers.py`, as far as they are installed, AP, AP50, AP75 and AR are. `for_comparison` is what a comparison
needs of one configuration: from files to matches of every image. The bootstrap compares two configurations and uses all
cores.
"""

from __future__ import annotations

import os

os.environ.update(RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")  # read when an evaluator is imported

import argparse
import contextlib
import gc
import importlib.metadata
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_eval_peers import importable_peers
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vispeft.evaluation.metrics.accumulate import accumulate, coco_summary
from vispeft.evaluation.metrics.coco import evaluate_coco, read_scored
from vispeft.evaluation.statistics.bootstrap import Records, records_of
from vispeft.evaluation.statistics.compare import Entry, compare
from vispeft.training.processor import describe_cpu

# AP, AP50, AP75, AR1, AR10, AR100
WITHOUT_SIZES = (0, 1, 2, 6, 7, 8)
HEIGHT, WIDTH, NUM_CATEGORIES, NUM_POINTS = 480, 640, 80, 24


def synthetic_files(folder: Path, num_images: int, detections: int = 100) -> tuple[Path, Path]:
    """Write annotations and results with the proportions of COCO val."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": HEIGHT, "width": WIDTH})
        present = rng.integers(1, NUM_CATEGORIES + 1, rng.integers(1, 5))
        count = int(rng.poisson(7.2))
        centre, radius = rng.uniform((0, 0), (WIDTH, HEIGHT), (count, 2)), np.exp(rng.uniform(1.8, 5, count))
        wobble, category = rng.uniform(0.7, 1.3, (count, NUM_POINTS)), rng.choice(present, count)
        for polygon, category_id in zip(blobs(centre, radius, wobble), category.tolist(), strict=True):
            annotations.append(annotation(polygon, image_id, category_id, len(annotations) + 1, rng.random() < 1 / 80))
        near = (rng.random(detections) < 0.5) & (count > 0)
        model = rng.integers(0, max(count, 1), detections) if count else np.zeros(detections, dtype=int)
        error = rng.exponential(0.15, detections)
        fresh = rng.uniform((0, 0), (WIDTH, HEIGHT), (detections, 2)), np.exp(rng.uniform(1.8, 5, detections))
        wild = rng.uniform(0.7, 1.3, (detections, NUM_POINTS))
        guess = np.where(rng.random(detections) < 0.6, rng.choice(present, detections), rng.integers(1, 81, detections))
        if count:
            shift = rng.normal(0, 1, (detections, 2)) * (radius[model] * error)[:, None]
            fresh = (
                np.where(near[:, None], centre[model] + shift, fresh[0]),
                np.where(near, radius[model] * np.exp(rng.normal(0, 1, detections) * error), fresh[1]),
            )
            wild = np.where(near[:, None], wobble[model] * (1 + (wild - 1) * error[:, None]), wild)
            guess = np.where(near & (rng.random(detections) < 0.8), category[model], guess)
        score = np.where(near, rng.beta(4, 2, detections) * np.exp(-2 * error), rng.beta(1, 5, detections))
        rles = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in blobs(*fresh, wild)], HEIGHT, WIDTH)
        boxes = coco_mask.toBbox(rles).tolist()
        for rle, box, category_id, value in zip(rles, boxes, guess.tolist(), score.tolist(), strict=True):
            shape = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
            result = {"image_id": image_id, "category_id": category_id, "bbox": box, "segmentation": shape}
            results.append(result | {"score": float(np.float32(value))})
    categories = [{"id": number, "name": f"category {number}"} for number in range(1, NUM_CATEGORIES + 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    paths = folder / "annotations.json", folder / "results.json"
    for path, content in zip(paths, (document, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def blobs(centre: NDArray[Any], radius: NDArray[Any], wobble: NDArray[Any]) -> NDArray[Any]:
    """Return polygons within the image: [N, points, 2]."""
    angles = np.linspace(0, 2 * np.pi, NUM_POINTS, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = centre[:, None] + (radius[:, None] * wobble)[:, :, None] * ring
    inside: NDArray[Any] = np.clip(points, 0, (WIDTH, HEIGHT)).round(2)
    return inside


def annotation(polygon: NDArray[Any], image_id: int, category_id: int, number: int, is_crowd: bool) -> dict[str, Any]:
    """Return one annotation. A crowd is an RLE with its counts as a list, as in COCO's files."""
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH))
    segmentation: Any = [polygon.ravel().tolist()]
    if is_crowd:
        mask = coco_mask.decode(rle).ravel(order="F")
        changes = np.flatnonzero(np.diff(mask, prepend=0)).tolist()
        segmentation = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *changes, mask.size]).tolist()}
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(is_crowd),
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "segmentation": segmentation,
    }


def by_pycocotools(annotations: Path, results: Path) -> dict[str, COCOeval]:
    """Evaluate masks and boxes with pycocotools; the mask pass omits boxes."""
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        loaded = json.loads(results.read_bytes())
        for kind in ("segm", "bbox"):
            copies = [{key: value for key, value in item.items() if key != "bbox" or kind == "bbox"} for item in loaded]
            found[kind] = COCOeval(truth, truth.loadRes(copies), kind)
            found[kind].evaluate()
            found[kind].accumulate()
            found[kind].summarize()
    return found


def is_identical(reference: dict[str, COCOeval], annotations: Path, results: Path) -> dict[str, bool]:
    """Return True for masks and boxes if metrics, precisions, recalls and scores equal pycocotools' bit by bit."""
    scored = read_scored(annotations, results)
    same = {}
    for kind, expected in reference.items():
        matches, num_categories = scored.match(kind), len(scored.category_ids)
        curves, (stats, _) = accumulate(matches, num_categories), coco_summary(matches, num_categories)
        pairs = [(list(stats.values()), expected.stats)]
        pairs += [(getattr(curves, name), expected.eval[name]) for name in ("precision", "recall", "scores")]
        same[kind] = all(np.array_equal(found, wanted) for found, wanted in pairs)
    return same


def same_as(reference: dict[str, COCOeval], found: dict[str, list[float]]) -> dict[str, bool]:
    """Return True for masks and boxes if the metrics that do not depend on sizes equal pycocotools' bit by bit."""
    return {
        kind: all(found[kind][index] == expected.stats[index] for index in WITHOUT_SIZES)
        for kind, expected in reference.items()
    }


def records(annotations: Path, results: Path | list[dict[str, Any]]) -> Records:
    """Return the records of one configuration for a comparison."""
    scored = read_scored(annotations, results)
    return records_of(scored.match("segm"), len(scored.image_ids), len(scored.category_ids))


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return seconds of processor and wall time, and the result."""
    gc.collect()
    processor, wall = time.process_time(), time.perf_counter()
    outcome = work()
    return {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}, outcome


def summary(times: list[dict[str, float]]) -> dict[str, float]:
    """Return median and spread of processor time, and the median of wall time."""
    processor = [one["processor"] for one in times]
    return {
        "processor_s": round(statistics.median(processor), 2),
        "processor_s_least": round(min(processor), 2),
        "processor_s_most": round(max(processor), 2),
        "wall_s": round(statistics.median(one["wall"] for one in times), 2),
    }


def measured(annotations: Path, results: Path, repeats: int) -> dict[str, Any]:
    """Return times of all implementations, and whether their metrics equal pycocotools'."""
    peers = importable_peers()
    times: dict[str, list[dict[str, float]]] = {}
    identical: list[dict[str, bool]] = []
    same: dict[str, dict[str, bool]] = {}

    def run(name: str, work: Callable[[], Any]) -> Any:
        seconds, outcome = timed(work)
        times.setdefault(name, []).append(seconds)
        print(name, seconds, flush=True)
        return outcome

    for _ in range(repeats):
        run("vispeft", lambda: evaluate_coco(annotations, results))
        run("for_comparison", lambda: records(annotations, results))
        reference = run("pycocotools", lambda: by_pycocotools(annotations, results))
        identical.append(is_identical(reference, annotations, results))
        for name, peer in peers.items():
            same[name] = same_as(reference, run(name, partial(peer, annotations, results)))
        del reference
    whole = summary(times["pycocotools"])
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "pycocotools", "msgspec", *peers)},
        "identical_bit_by_bit": {kind: all(one[kind] for one in identical) for kind in ("segm", "bbox")},
        **{name: summary(values) for name, values in times.items()},
        "share_of_pycocotools": {
            name: {key: round(summary(values)[f"{key}_s"] / whole[f"{key}_s"], 3) for key in ("processor", "wall")}
            for name, values in times.items()
            if name != "pycocotools"
        },
        "same_ap_and_ar_as_pycocotools": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        annotations, results = synthetic_files(Path(folder), options.images)
        print("input made", flush=True)
        found = measured(annotations, results, options.repeats)
        first = json.loads(results.read_bytes())
        noise = np.random.default_rng(1).normal(0, 0.02, len(first))
        second = [item | {"score": item["score"] + float(more)} for item, more in zip(first, noise, strict=True)]
        entries = [Entry("one", (records(annotations, first),)), Entry("other", (records(annotations, second),))]
        num_objects = int(entries[0].runs[0].num_objects.sum())
        bootstrap, comparison = timed(lambda: compare(entries, num_resamples=options.resamples))
    outcome = {
        "input": {"images": options.images, "objects": num_objects, "detections": len(first)},
        "command": " ".join(["python", "tools/bench_eval.py", *sys.argv[1:]]),
        "machine": describe_cpu(),
        "load_at_start_and_end": [round(load, 1), round(os.getloadavg()[0], 1)],
        **found,
        "paired_bootstrap": {"resamples": options.resamples, **summary([bootstrap]), "says": comparison.sentence},
    }
    print(json.dumps(outcome, indent=1))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")


if __name__ == "__main__":
    main()
