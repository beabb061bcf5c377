"""A COCO instance set in memory: classes, images, instances and crowd regions, all of them usable."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from vispeft.coco.problems import CheckReport
from vispeft.coco.segmentation import Rle, Segmentation, encode_segmentation
from vispeft.coco.values import new_ids
from vispeft.errors import DataError


@dataclass(frozen=True, slots=True)
class Category:
    """A class. Its contiguous index is its place in `CocoSet.categories`.

    id: as in the file
    is_thing: False for a class without instances ("stuff") of a panoptic set; None in sets of other kinds
    """

    id: int
    name: str
    is_thing: bool | None = None


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image. path: None where no image folder was given. height, width: as shown (EXIF applied), in pixels."""

    id: int
    file_name: str
    path: Path | None
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One instance or crowd region.

    id: unique in the set; the file's own wherever that can be kept
    bbox: x, y, width, height as in the file, or of the mask where the file has none that is valid
    area: as in the file, or of the mask, in pixels
    place: in the list of the file; -1 for an annotation that is in none
    """

    id: int
    image_id: int
    category_idx: int
    is_crowd: bool
    segmentation: Segmentation
    bbox: tuple[float, float, float, float]
    area: float
    place: int = -1


class Groups(Sequence[tuple[Annotation, ...]]):
    """The annotations of every image, packed into one array of bytes.

    Millions of small objects would be copied into each worker process as soon as their reference counts are touched.
    """

    def __init__(self, groups: Iterable[Sequence[Annotation]]) -> None:
        pickles = [pickle.dumps(tuple(group), pickle.HIGHEST_PROTOCOL) for group in groups]
        self._ends = np.cumsum([0, *map(len, pickles)])
        self._packed = np.frombuffer(b"".join(pickles), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[Annotation, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Annotation, ...], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[Annotation, ...] | tuple[tuple[Annotation, ...], ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        place = range(len(self))[index]
        group: tuple[Annotation, ...] = pickle.loads(self._packed[self._ends[place] : self._ends[place + 1]].data)
        return group


@dataclass(frozen=True)
class CocoSet:
    """A COCO instance set that can be trained and scored on.

    categories: sorted by id; the place of a category is its contiguous class index
    annotations, crowds: one entry per image, in the order of `images`
    report: entries left out or corrected on reading
    labelled: indices of the classes whose instances are annotated; None: all
    """

    annotations_path: Path
    images_dir: Path | None
    categories: tuple[Category, ...]
    images: tuple[ImageEntry, ...]
    annotations: Groups
    crowds: Groups
    report: CheckReport
    labelled: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_instances(self) -> int:
        return sum(map(len, self.annotations))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category id of every contiguous class index, as predictions are written."""
        return tuple(category.id for category in self.categories)

    def subset(self, indices: Iterable[int]) -> CocoSet:
        """The set with only these images, by their place in `images`."""
        indices = list(indices)
        return replace(
            self,
            images=tuple(self.images[i] for i in indices),
            annotations=Groups(self.annotations[i] for i in indices),
            crowds=Groups(self.crowds[i] for i in indices),
        )


def match_categories(train: CocoSet, val: CocoSet) -> CocoSet:
    """`val` with the class indices of `train`, matched by name; category ids in predictions stay those of `val`.

    A class of `train` that `val` does not list gets an unused id. Raises `DataError` where `val` has instances of a
    class that `train` does not have.
    """
    ids = {category.name: category.id for category in val.categories}
    known = {name: idx for idx, name in enumerate(train.class_names)}
    used = {val.categories[a.category_idx].name for a in all_annotations(val.annotations, val.crowds)}
    unknown = sorted(used - known.keys())
    if unknown:
        raise DataError(
            f"{val.annotations_path}: annotations of {', '.join(f'`{name}`' for name in unknown[:5])}, which the "
            f"categories of {train.annotations_path} ({', '.join(train.class_names[:20])}) do not have. Classes are "
            "matched by name: use the same names in both files."
        )
    free = new_ids(set(ids.values()))
    categories = [
        Category(ids[kind.name] if kind.name in ids else next(free), kind.name, kind.is_thing)
        for kind in train.categories
    ]
    new_idx = [known.get(name, -1) for name in val.class_names]

    def moved(groups: Groups) -> Groups:
        return Groups(tuple(replace(a, category_idx=new_idx[a.category_idx]) for a in group) for group in groups)

    return replace(val, categories=tuple(categories), annotations=moved(val.annotations), crowds=moved(val.crowds))


def to_annotations(coco_set: CocoSet) -> dict[str, Any]:
    """Return the COCO dictionary of the entries in use: ids as in the file, `area` and `bbox` filled in."""
    sizes = {image.id: (image.height, image.width) for image in coco_set.images}
    annotations = sorted(all_annotations(coco_set.annotations, coco_set.crowds), key=lambda a: a.id)
    return {
        "images": [
            {"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width}
            for image in coco_set.images
        ],
        "categories": [
            {"id": kind.id, "name": kind.name, **({} if kind.is_thing is None else {"isthing": int(kind.is_thing)})}
            for kind in sorted(coco_set.categories, key=lambda kind: kind.id)
        ],
        "annotations": [
            {
                "id": a.id,
                "image_id": a.image_id,
                "category_id": coco_set.categories[a.category_idx].id,
                "segmentation": segmentation_to_json(a.segmentation, *sizes[a.image_id]),
                "bbox": list(a.bbox),
                "area": a.area,
                "iscrowd": int(a.is_crowd),
            }
            for a in annotations
        ],
    }


def segmentation_to_json(segmentation: Segmentation, height: int, width: int) -> Any:
    """A segmentation as a COCO file holds it: lists of numbers, or compressed RLE."""
    if isinstance(segmentation, Rle):
        rle = encode_segmentation(segmentation, height, width)
        return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return [part.reshape(-1).tolist() for part in segmentation.parts]


def all_annotations(*groups: Sequence[Sequence[Annotation]]) -> list[Annotation]:
    return [annotation for group in groups for one_image in group for annotation in one_image]
