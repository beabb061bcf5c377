#!/usr/bin/env python
"""Write a small COCO set of some images of a larger one, at a smaller size: the photographs of the quickstart.

    python tools/shrink_set.py potholes --out vispeft/assets/photographs --num-train 60 --num-val 40 --side 160

The folder holds train.json, val.json and images/; --out must be new. Images are chosen by the seed among those with
instances, fitted to --side; masks are written as run lengths at that size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from vispeft.data import Draw, EvalTransform, InstanceDataset, read_coco


def main() -> None:
    """Parse the command line and write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-train", type=int, required=True)
    parser.add_argument("--num-val", type=int, required=True)
    parser.add_argument("--side", type=int, required=True, help="longer side of the images, in pixels")
    parser.add_argument("--quality", type=int, default=80, help="of the JPEG files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    (args.out / "images").mkdir(parents=True)
    for split, count in (("train", args.num_train), ("val", args.num_val)):
        written = shrink(args.folder, split, count, args)
        (args.out / f"{split}.json").write_text(json.dumps(written, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.2f} MB")


def shrink(folder: Path, split: str, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Write the images of a split and return its annotations."""
    coco_set = read_coco(folder / f"{split}.json", folder / "images")
    dataset = InstanceDataset(coco_set, EvalTransform(args.side))
    order = np.random.default_rng(args.seed).permutation([i for i, each in enumerate(coco_set.annotations) if each])
    categories = [{"id": i, "name": name} for i, name in enumerate(coco_set.class_names, start=1)]
    written: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    if len(order) < count:
        raise SystemExit(f"{folder / split}.json has {len(order)} images with instances, fewer than {count}.")
    for number, index in enumerate(sorted(order[:count]), start=1):
        sample = dataset[Draw(int(index))]
        name = f"{split}{number:03d}.jpg"
        pixels = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()[:, :, ::-1])
        cv2.imwrite(str(args.out / "images" / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, args.quality])
        height, width = pixels.shape[:2]
        written["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for label, mask in zip(sample.labels.tolist(), sample.masks.numpy(), strict=True):
            rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
            box, area = mask_utils.toBbox(rle).tolist(), int(mask.sum())
            rle["counts"] = rle["counts"].decode()
            annotation = {"id": len(written["annotations"]) + 1, "image_id": number, "category_id": label + 1}
            written["annotations"].append({**annotation, "segmentation": rle, "bbox": box, "area": area, "iscrowd": 0})
    return written


if __name__ == "__main__":
    main()
