"""Summary of a data set's contents, with which a resumed run checks that its data are unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from vispeft.coco.segmentation import Rle, Segmentation
from vispeft.coco.sets import Annotation, CocoSet


@dataclass(frozen=True)
class SetContents:
    """Everything of a set that training and scoring depend on, but for the pixels of its images.

    classes: names by class index
    category_ids: the file's own id of each class
    images: digest of the images' file names, ids and sizes, in order
    annotations: digest of the annotations of each image, in order
    """

    classes: Sequence[str]
    category_ids: Sequence[int]
    num_images: int
    num_instances: int
    num_crowds: int
    images: str
    annotations: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**asdict(self), "classes": [*self.classes], "category_ids": [*self.category_ids]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the contents from the values of `to_dict`."""
        return cls(**values)


def contents_of(coco_set: CocoSet) -> SetContents:
    """Return the contents of a set, independent of the paths and the layout of its files."""
    images = hashlib.sha256()
    for image in coco_set.images:
        images.update(repr((image.id, image.file_name, image.height, image.width)).encode())
    names = coco_set.class_names
    annotations, counts = hashlib.sha256(), [0, 0]
    for groups in zip(coco_set.annotations, coco_set.crowds, strict=True):
        for kind, group in enumerate(groups):
            annotations.update(f"{len(group)} ".encode())
            counts[kind] += len(group)
            for annotation in group:
                _add(annotations, annotation, names[annotation.category_idx])
    return SetContents(
        classes=names,
        category_ids=coco_set.category_ids,
        num_images=len(coco_set),
        num_instances=counts[0],
        num_crowds=counts[1],
        images=images.hexdigest(),
        annotations=annotations.hexdigest(),
    )


def changes(before: SetContents, now: SetContents) -> list[str]:
    """Return the differences between two sets as text such as `images 3 -> 1`; empty where both are equal."""
    found = [
        f"{name} {old} -> {new}"
        for name, old, new in (
            ("images", before.num_images, now.num_images),
            ("instances", before.num_instances, now.num_instances),
            ("crowd regions", before.num_crowds, now.num_crowds),
        )
        if old != new
    ]
    if list(before.classes) != list(now.classes):
        found.append(_class_change(before.classes, now.classes))
    old_ids, new_ids = (dict(zip(one.classes, one.category_ids, strict=True)) for one in (before, now))
    moved = [
        f"`{name}` {old_ids[name]} -> {new_ids[name]}"
        for name in old_ids
        if new_ids.get(name, old_ids[name]) != old_ids[name]
    ]
    if moved:
        found.append(f"category ids {', '.join(moved[:3])}{_more(moved, 3)}")
    if before.num_images == now.num_images and before.images != now.images:
        found.append("other names, ids, sizes or order of images")
    if not found and before.annotations != now.annotations:
        found.append("other masks, boxes or classes of instances")
    return found


def _class_change(before: Sequence[str], now: Sequence[str]) -> str:
    added, lost = ([f"`{n}`" for n in one if n not in other] for one, other in ((now, before), (before, now)))
    if not added and not lost:
        return f"order of classes {_listed(before)} -> {_listed(now)}"
    parts = [
        f"{word} {', '.join(names[:3])}{_more(names, 3)}"
        for word, names in (("with", added), ("without", lost))
        if names
    ]
    return f"classes {len(before)} -> {len(now)} ({'; '.join(parts)})"


def _listed(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:5])}{_more(names, 5)}]"


def _more(names: Sequence[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


def _add(digest: Any, annotation: Annotation, class_name: str) -> None:
    box = tuple(map(float, annotation.bbox))
    digest.update(repr((class_name, float(annotation.area), box)).encode())
    _add_segmentation(digest, annotation.segmentation)


def _add_segmentation(digest: Any, segmentation: Segmentation) -> None:
    if isinstance(segmentation, Rle):
        digest.update(f"rle {segmentation.height} {segmentation.width} {len(segmentation.runs)} ".encode())
        digest.update(segmentation.runs.tobytes())
        return
    for part in segmentation.parts:
        digest.update(f"polygon {len(part)} ".encode())
        digest.update(part.tobytes())
