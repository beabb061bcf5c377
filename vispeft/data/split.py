"""Split of a set into training and validation images with the same proportion of every class."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.boxes import read_boxes
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.check import with_extras
from vispeft.data.reading.coco import read_coco
from vispeft.errors import ConfigError, DataError, writing
from vispeft.io.json_files import write_json


@dataclass(frozen=True)
class Split:
    """Training and validation set, and their files."""

    train: CocoSet
    val: CocoSet
    train_path: Path
    val_path: Path


def split_coco(
    annotations: Path,
    images: Path | None,
    out_dir: Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    num_channels: int = RGB,
    boxes_alone: bool = False,
) -> Split:
    """Write `train.json` and `val.json` into `out_dir`. `file_name`s stay relative to the same image folder.

    boxes_alone: for detection: the boxes count, and `segmentation` stays as it is
    """
    read = read_boxes if boxes_alone else read_coco
    coco_set = read(annotations, images, check_images=images is not None, num_channels=num_channels)
    train_idx, val_idx = split_indices(coco_set, val_fraction=val_fraction, seed=seed)
    train, val = coco_set.subset(train_idx), coco_set.subset(val_idx)
    paths = (out_dir / "train.json", out_dir / "val.json")
    for path in paths:
        with writing(path, DataError):
            is_same = path.exists() and path.samefile(annotations)
        if is_same:
            raise DataError(f"{path} is the file to split; give another folder.")
    for side, path in zip((train, val), paths, strict=True):
        write_json(path, with_extras(side, boxes_alone=boxes_alone), raises=DataError, allow_nan=True)
    return Split(train, val, *paths)


def split_indices(coco_set: CocoSet, *, val_fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return the indices of the training and the validation images, each sorted.

    Images are assigned class by class, the rarest first (Sechidis et al. 2011), to the side that lacks the larger part
    of its share of the class: by the number that is lacking, as published, the larger side would take all images with
    many instances. The last image of a class that no training image has is one of these, as long as there is room.
    Entries of one file stay together, so that no image is in both sets.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"`val_fraction` must lie between 0 and 1, but is {val_fraction}.")
    files: dict[str, list[int]] = {}
    for index, image in enumerate(coco_set.images):
        files.setdefault(os.path.normpath(image.file_name), []).append(index)
    if len(files) < 2:
        raise DataError(f"{coco_set.annotations_path} has one image; a split needs at least two.")
    rng = np.random.default_rng(seed)
    names = [list(files)[i] for i in rng.permutation(len(files))]
    classes = {
        name: Counter(a.category_idx for index in files[name] for a in coco_set.annotations[index]) for name in names
    }
    in_val = _assign(names, classes, val_fraction)
    sides = [sorted(i for name in names if in_val[name] is side for i in files[name]) for side in (False, True)]
    return sides[0], sides[1]


def _assign(names: list[str], classes: dict[str, Counter[int]], val_fraction: float) -> dict[str, bool]:
    """Return True for each file of the validation set. Each side gets at least one file."""
    num_val = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    room = {False: len(names) - num_val, True: num_val}
    totals: Counter[int] = sum(classes.values(), Counter())
    shares = {False: 1 - val_fraction, True: val_fraction}
    wanted = {side: {c: share * n for c, n in totals.items()} for side, share in shares.items()}
    trained: set[int] = set()
    holders_left = Counter(c for name in names for c in classes[name])
    in_val: dict[str, bool] = {}
    for rare in [*sorted(totals, key=lambda c: (totals[c], c)), None]:
        # the fullest first: a few images with many instances are the hardest to share out
        holders = [name for name in names if name not in in_val and (rare is None or classes[name][rare])]
        for name in sorted(holders, key=lambda name: -sum(classes[name].values())):
            lacks = {
                side: (wanted[side][rare] if rare is not None else room[side]) / share for side, share in shares.items()
            }
            side = lacks[True] > lacks[False] if room[True] and room[False] else bool(room[True])
            if room[False] and any(c not in trained and holders_left[c] == 1 for c in classes[name]):
                # nothing can be learnt from validation images
                side = False
            in_val[name] = side
            holders_left.subtract(classes[name].keys())
            if not side:
                trained |= classes[name].keys()
            room[side] -= 1
            for category_idx, count in classes[name].items():
                wanted[side][category_idx] -= count
    return in_val
