"""Measure the loader in images per second: each stage on one core, then the whole loader with worker processes.

    python tools/bench_loader.py --image-size 512 [--annotations train.json --images images] [--json results.json]

Without `--annotations`, a synthetic set replaces COCO: 640 x 480 JPEGs with 7 instances each, three quarters of them
polygons. Stages are measured by the processor time of one thread, which excludes other programs; the whole loader is
measured by wall time. Results are medians over `--repeats`, with the spread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from vispeft.data import Draw, InstanceDataset, TrainTransform, collate, draw_loader, read_coco, train_draws
from vispeft.structures import Batch

STATISTICS: dict[str, Any] = {"pixel_mean": (123.7, 116.3, 103.5), "pixel_std": (58.4, 57.1, 57.4)}


def synthetic_set(folder: Path, num_images: int = 32) -> tuple[Path, Path]:
    """Write a set with the usual proportions of COCO. Return the annotation file and the image folder."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        noise = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)).save(folder / f"{image_id}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 480, "width": 640})
        for _ in range(7):
            radius = rng.uniform(10, 110) * rng.uniform(0.8, 1.2, len(angles))
            center = rng.uniform((60, 60), (580, 420))
            points = np.stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)], 1)
            polygon = [np.clip(points, 0, (640, 480)).reshape(-1).tolist()]
            packed = coco_mask.merge(coco_mask.frPyObjects(polygon, 480, 640))
            rle = {"size": [480, 640], "counts": packed["counts"].decode()}
            segmentation = polygon if len(annotations) % 4 else rle
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "segmentation": segmentation}
            )
    path = folder / "train.json"
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}]}
    path.write_text(json.dumps(document))
    return path, folder


def per_second(work: Callable[[], int], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return median and spread of the count of `work` per second of `clock`."""
    work()
    rates = []
    for _ in range(repeats):
        start = clock()
        count = work()
        rates.append(count / (clock() - start))
    return {
        "median": round(statistics.median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
    }


def measure(
    annotations: Path, images: Path, *, image_size: int, num: int, repeats: int, workers: int
) -> dict[str, Any]:
    """Measure the images per second of every stage."""
    coco_set = read_coco(annotations, images)
    transform = TrainTransform(image_size)
    uncached = InstanceDataset(coco_set, transform, cache_bytes=0)
    cached = InstanceDataset(coco_set, transform, cache_bytes=2**31)
    indices = [i % len(coco_set) for i in range(num)]
    samples = [cached[Draw(index, number)] for number, index in enumerate(indices)]

    def take(dataset: InstanceDataset) -> Callable[[], int]:
        return lambda: len([dataset[Draw(index, number)] for number, index in enumerate(indices)])

    def batches() -> int:
        parts = [samples[i : i + 4] for i in range(0, len(samples), 4)]
        return sum(len(collate(part, **STATISTICS, image_size=image_size)) for part in parts)

    results = {
        "decode and augment": per_second(take(uncached), repeats, time.thread_time),
        "augment (decoded images cached)": per_second(take(cached), repeats, time.thread_time),
        "collate": per_second(batches, repeats, time.thread_time),
    }
    for count in (0, workers):
        draws = train_draws(coco_set, batch_size=4, seed=0, steps=-(-num // 4))
        loader = draw_loader(cached, draws, workers=count, **STATISTICS)
        name = f"whole loader, {count} workers, wall time"
        results[name] = per_second(partial(_count, loader), repeats, time.perf_counter)
    return results


def _count(batches: Iterable[Batch]) -> int:
    return sum(len(batch) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--num", type=int, default=64, help="samples per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.annotations is None:
            options.annotations, options.images = synthetic_set(Path(folder))
        results = measure(
            options.annotations,
            options.images,
            image_size=options.image_size,
            num=options.num,
            repeats=options.repeats,
            workers=options.workers,
        )
    print(f"{'images per second':38} {'median':>8} {'least':>8} {'most':>8}")
    for name, rates in results.items():
        print(f"{name:38} {rates['median']:8} {rates['least']:8} {rates['most']:8}")
    if options.json is not None:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        load = os.getloadavg()[0]
        source = str(options.annotations.name)
        record = {"image_size": options.image_size, "source": source, "load": load, **machine, "results": results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
