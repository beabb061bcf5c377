"""Measure prediction by tiles: methods of merging on a known answer, and peak memory on a very large image.

    python tools/measure_tiles.py merging --json tools/results/tiles_merging.json
    python tools/measure_tiles.py memory --side 10000 --objects 1500 --json tools/results/tiles_memory.json
    python tools/measure_tiles.py training --tile 1536 --json tools/results/tiles_training.json

`merging` gives every tile what a good model would find there, the visible parts of the objects with noisy outlines
and scores whole images. `memory` writes a synthetic image, predicts it by the bundled base in tiles and reports the
peak memory of the process, from the reading of the file to the merged instances. `training` trains on such an image,
evaluates it and writes the report; nothing is filtered by score there, which is the most that merging can get.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from vispeft.coco.results import to_coco_results
from vispeft.coco.rle import boxes_of
from vispeft.coco.rle_windows import moved_rle
from vispeft.data.transforms.tiles import Tiling
from vispeft.evaluation import evaluate_coco
from vispeft.models.tile_merging import merge_tiles
from vispeft.structures import ImageMeta, Instances, Window

Parts = Sequence[tuple[ImageMeta, Instances]]
SIDE, TILE = 1600, 400


def encoded(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the compressed RLE of a mask."""
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def filled(outline: NDArray[np.int32], height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    """Return the mask of an outline, whose points are x and y."""
    return np.asarray(cv2.fillPoly(np.zeros((height, width), np.uint8), [outline], 1), np.uint8)


def scene(rng: np.random.Generator, num_objects: int) -> list[NDArray[np.int32]]:
    """Return the outlines of ellipses that do not overlap much, from 10 pixels to more than a tile."""
    occupied = np.zeros((SIDE, SIDE), np.uint8)
    outlines: list[NDArray[np.int32]] = []
    for radius in sorted(rng.uniform(5, 12, num_objects) * rng.choice([1, 2, 5, 16], num_objects), reverse=True):
        centre = rng.integers(0, SIDE, 2).tolist()
        axes = (int(radius), int(radius * rng.uniform(0.5, 1)))
        outline = np.asarray(cv2.ellipse2Poly(centre, axes, int(rng.integers(180)), 0, 360, 12), np.int32)
        mask = filled(outline)
        if (mask & occupied).sum() < 0.05 * mask.sum() and mask.sum() > 40:
            occupied |= mask
            outlines.append(outline)
    return outlines


def found_in_tiles(outlines: Sequence[NDArray[np.int32]], tiling: Tiling, rng: np.random.Generator) -> Parts:
    """Return the visible parts of all objects with noisy outlines; a smaller part has a lower score."""
    tiles, found = tiling.tiles(SIDE, SIDE), []
    masks = [filled(outline) for outline in outlines]
    areas = [int(mask.sum()) for mask in masks]
    for tile in tiles:
        rles, scores = [], []
        for outline, mask, area in zip(outlines, masks, areas, strict=True):
            if not mask[tile.top : tile.bottom, tile.left : tile.right].any():
                continue
            noisy = outline + rng.normal(0, 0.03 * np.sqrt(area), outline.shape)
            moved_outline = np.round(noisy - (tile.left, tile.top)).astype(np.int32)
            part = filled(moved_outline, tile.bottom - tile.top, tile.right - tile.left)
            if part.sum() > 8:
                rles.append(encoded(part))
                scores.append(min(1.0, part.sum() / area) ** 0.3 * rng.uniform(0.6, 0.95))
        window = Window(tile.left, tile.top, SIDE, SIDE, len(tiles))
        meta = ImageMeta(1, "", tile.bottom - tile.top, tile.right - tile.left, 1, 1, window)
        labels = torch.zeros(len(rles), dtype=torch.int64)
        boxes = torch.from_numpy(boxes_of(rles))
        found.append((meta, Instances(torch.tensor(scores, dtype=torch.float32), labels, boxes, rles)))
    return found


def moved(parts: Parts) -> list[tuple[float, dict[str, Any], ImageMeta, NDArray[np.float32]]]:
    """Return score, mask in the image, meta and box in the tile of every part, best first."""
    out = []
    for meta, found in parts:
        window = meta.window
        assert window is not None
        for score, rle, box in zip(found.scores.tolist(), found.rles, found.boxes_xyxy.numpy(), strict=True):
            out.append((score, moved_rle(rle, window.left, window.top, SIDE, SIDE), meta, box))
    return sorted(out, key=lambda part: -part[0])


def instances_of(kept: Sequence[tuple[float, dict[str, Any]]]) -> Instances:
    """Return kept scores and masks as instances."""
    rles = [rle for _, rle in kept]
    scores = torch.tensor([score for score, _ in kept])
    return Instances(scores, torch.zeros(len(kept), dtype=torch.int64), torch.from_numpy(boxes_of(rles)), rles)


def all_parts(parts: Parts) -> Instances:
    """Keep every part."""
    return instances_of([(score, rle) for score, rle, _, _ in moved(parts)])


def by_centre(parts: Parts) -> Instances:
    """Keep parts whose centre lies nearer to the tile's centre than to those of its neighbours."""
    kept = []
    for score, rle, meta, box in moved(parts):
        window = meta.window
        assert window is not None
        centre, margin = (box[:2] + box[2:]) / 2, TILE * 0.125
        low = [margin if start > 0 else 0 for start in (window.left, window.top)]
        ends = (window.left + meta.width, window.top + meta.height)
        high = [side - (margin if end < SIDE else 0) for side, end in zip((meta.width, meta.height), ends, strict=True)]
        if (centre >= low).all() and (centre < high).all():
            kept.append((score, rle))
    return instances_of(kept)


def suppressed(parts: Parts, *, by_smaller: bool) -> Instances:
    """Keep the best of parts that overlap by half: of their union, or of the smaller part."""
    kept: list[tuple[float, dict[str, Any]]] = []
    for score, rle, _, _ in moved(parts):
        others = [other for _, other in kept]
        overlap = np.zeros(1)
        if others:
            overlap = np.asarray(mask_utils.iou([rle], others, [0] * len(others)))
            if by_smaller:
                forward = np.asarray(mask_utils.iou([rle], others, [1] * len(others)))
                overlap = np.maximum(forward, np.asarray(mask_utils.iou(others, [rle], [1])).T)
        if overlap.max() < 0.5:
            kept.append((score, rle))
    return instances_of(kept)


METHODS: dict[str, Callable[[Parts], Instances]] = {
    "all parts": all_parts,
    "nearest tile's centre": by_centre,
    "suppression by IoU": lambda parts: suppressed(parts, by_smaller=False),
    "suppression by share of the smaller": lambda parts: suppressed(parts, by_smaller=True),
    "whole or joined (vispeft)": lambda parts: merge_tiles(parts, 10_000),
}


def measure_merging(num_scenes: int) -> dict[str, Any]:
    """Return mask AP of every method over some scenes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for number in range(1, num_scenes + 1):
        rng = np.random.default_rng(number)
        outlines = scene(rng, 160)
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for outline in outlines:
            rle = encoded(filled(outline))
            (box,) = boxes_of([rle]).tolist()
            area = int(mask_utils.area(rle))
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": number, "category_id": 1, "iscrowd": 0, "area": area, "bbox": sides}
            annotations.append({"id": len(annotations) + 1, "segmentation": rle, **entry})
        parts = found_in_tiles(outlines, Tiling(TILE, 0.25), rng)
        for name, method in METHODS.items():
            results[name] += to_coco_results(method(parts), number, [1])
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    rows = {}
    for name, found in results.items():
        metrics = evaluate_coco(truth, found, max_detections=1000).segm
        rows[name] = {"instances": len(found), **{key: round(value, 4) for key, value in metrics.items()}}
    return {"scenes": num_scenes, "side": SIDE, "tile": TILE, "objects": len(annotations), "methods": rows}


def write_discs(path: Path, side: int, num_objects: int) -> list[tuple[tuple[int, int], int]]:
    """Write an image of discs on a grid, so that none hides another; return centres and radii."""
    rng = np.random.default_rng(0)
    pixels = np.full((side, side, 3), 90, np.uint8)
    discs = []
    for place in rng.permutation((side // 200) ** 2)[:num_objects].tolist():
        row, column = divmod(place, side // 200)
        centre, radius = (200 * column + 100, 200 * row + 100), int(rng.integers(20, 90))
        cv2.circle(pixels, centre, radius, rng.integers(120, 255, 3).tolist(), -1)
        discs.append((centre, radius))
    Image.fromarray(pixels).save(path, compress_level=1)
    return discs


def measure_memory(side: int, num_objects: int, tile: int, threshold: float) -> dict[str, Any]:
    """Return time and peak memory of the prediction of one image file by the bundled base."""
    import vispeft as vp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        discs = write_discs(path, side, num_objects)
        model = vp.load_bundled()
        began = time.monotonic()
        (found,) = vp.predict(
            model, [path], threshold=threshold, max_detections=2 * num_objects, image_size=256, tile=tile
        )
        seconds = time.monotonic() - began
    return {
        **_setting(side, len(discs), tile, seconds),
        "threshold": threshold,
        "instances": len(found),
        "characters_of_rles": sum(len(rle["counts"]) for rle in found.rles),
    }


def measure_training(side: int, num_objects: int, tile: int, steps: int) -> dict[str, Any]:
    """Return time and peak memory of a short run with LoRA on one image, which it also evaluates, report included."""
    from vispeft.config import parse_config
    from vispeft.engine import RunDirectory, train_run

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        discs = write_discs(root / "large.png", side, num_objects)
        annotations = []
        for number, (centre, radius) in enumerate(discs, start=1):
            outline = np.asarray(cv2.ellipse2Poly(centre, (radius, radius), 0, 0, 360, 6)).reshape(-1).tolist()
            box = [centre[0] - radius, centre[1] - radius, 2 * radius, 2 * radius]
            entry = {"image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box, "area": 3.14 * radius**2}
            annotations.append({"id": number, "segmentation": [outline], **entry})
        images = [{"id": 1, "file_name": "large.png", "height": side, "width": side}]
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
        (root / "large.json").write_text(json.dumps(document))
        data = {"annotations": str(root / "large.json"), "images": folder}
        config = {
            "model": {"weights": "bundled", "tile": tile, "image_size": 256},
            "peft": {"deltas": {"@encoder.qkv": {"method": "lora", "rank": 4, "parts": "qv"}}, "train": ["@heads"]},
            "data": {"train": data, "val": data},
            "train": {"steps": steps, "batch_size": 2, "workers": 0, "device": "cpu", "eval_every": steps},
            "eval": {"max_detections": 2 * num_objects},
        }
        began = time.monotonic()
        result = train_run(parse_config(config), RunDirectory(root / "run"))
        seconds = time.monotonic() - began
    assert result.summary is not None
    return {**_setting(side, len(discs), tile, seconds), "steps": steps, "segm": result.summary["segm"]}


def _setting(side: int, num_objects: int, tile: int, seconds: float) -> dict[str, Any]:
    """Return what both measurements report, with the peak memory of this process so far."""
    return {
        "side": side,
        "objects": num_objects,
        "model": "bundled",
        "tile": tile,
        "image_size": 256,
        "tiles": len(Tiling(tile).tiles(side, side)),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("merging", "memory", "training"))
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--objects", type=int, default=1500)
    parser.add_argument("--tile", type=int, default=768)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "merging":
        measured = measure_merging(args.scenes)
    elif args.what == "training":
        measured = measure_training(args.side, args.objects, args.tile, args.steps)
    else:
        measured = measure_memory(args.side, args.objects, args.tile, args.threshold)
    text = json.dumps(measured, indent=1)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
