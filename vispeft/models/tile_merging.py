"""Instances of a whole image from those of its overlapping tiles: no object twice, none cut at a seam.

Two instances of one class in two tiles are the same object if they agree where both tiles look: the overlap. Of an
object that one of the tiles has whole, that instance is kept. An object that every tile cuts is joined from its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.rle import boxes_of, compress
from vispeft.coco.rle_windows import moved_rle
from vispeft.structures import ImageMeta, Instances, Window

# intersection over union within the overlap, or share of the smaller part if it is cut, of two parts of one object
_LEAST_AGREEMENT = 0.5
# pixels from a tile's border at which an instance counts as cut by it
_MARGIN = 2


@dataclass(frozen=True)
class _Parts:
    """Instances of all tiles of an image, best first; N of them.

    tiles: [N] number of the tile; labels: [N]; scores: [N] float32
    boxes: [N, 4] xyxy as predicted; extents: [N, 4] xyxy of the masks; both in pixels of the image
    is_cut: [N] bool, its mask touches a border of its tile inside the image
    rles: compressed, of the whole image
    """

    tiles: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    extents: NDArray[np.float32]
    is_cut: NDArray[np.bool_]
    rles: list[dict[str, Any]]


class WholeImages:
    """Instances of whole images from batches of images, or of tiles, which follow each other.

    max_detections: most instances of an image that is merged from tiles
    """

    def __init__(self, max_detections: int) -> None:
        self.max_detections = max_detections
        self._tiles: dict[int, list[tuple[ImageMeta, Instances]]] = {}

    def of(self, found: Sequence[tuple[ImageMeta, Instances]]) -> Iterator[tuple[ImageMeta, Instances]]:
        """Yield the images that these instances complete. The size in the meta of a merged image is that of a tile."""
        for meta, instances in found:
            if meta.window is None:
                yield meta, instances
                continue
            tiles = self._tiles.setdefault(meta.image_id, [])
            tiles.append((meta, instances))
            if len(tiles) == meta.window.num_windows:
                yield meta, merge_tiles(self._tiles.pop(meta.image_id), self.max_detections)


def merge_tiles(tiles: Sequence[tuple[ImageMeta, Instances]], max_detections: int) -> Instances:
    """Return the instances of an image from those of its tiles, in the image's pixels, best first.

    tiles: each with `meta.window`
    max_detections: most instances of the image
    """
    windows = [(meta, meta.window) for meta, _ in tiles if meta.window is not None]
    parts = _collect(windows, [found for _, found in tiles])
    neighbours = _agreements(windows, parts)
    is_taken = np.zeros(len(parts.scores), dtype=bool)
    kept: list[tuple[int, dict[str, Any], NDArray[np.float32]]] = []
    for seed in range(len(parts.scores)):
        if is_taken[seed]:
            continue
        if len(kept) == max_detections:
            break
        group = _group(seed, parts, neighbours, is_taken)
        kept.append(_one(group, parts))
    order = np.argsort([-parts.scores[best] for best, _, _ in kept], kind="stable").tolist()
    best = np.array([kept[i][0] for i in order], dtype=np.int64)
    boxes = np.array([kept[i][2] for i in order], dtype=np.float32).reshape(-1, 4)
    return Instances(
        torch.from_numpy(parts.scores[best]),
        torch.from_numpy(parts.labels[best]),
        torch.from_numpy(boxes),
        [kept[i][1] for i in order],
    )


def _collect(windows: Sequence[tuple[ImageMeta, Window]], found: Sequence[Instances]) -> _Parts:
    """Return the instances of all tiles in the image's pixels."""
    boxes, extents, is_cut, rles = [], [], [], []
    for (meta, window), instances in zip(windows, found, strict=True):
        offset = np.array([window.left, window.top] * 2, dtype=np.float32)
        extent = boxes_of(instances.rles)
        is_cut.append(_touches_inner_border(extent, meta, window))
        boxes.append(instances.boxes_xyxy.numpy() + offset)
        extents.append(extent + offset)
        place = window.left, window.top, window.image_height, window.image_width
        rles += [moved_rle(rle, *place) for rle in instances.rles]
    scores = np.concatenate([instances.scores.numpy() for instances in found])
    order = np.argsort(-scores, kind="stable")
    return _Parts(
        np.repeat(np.arange(len(found)), [len(instances) for instances in found])[order],
        np.concatenate([instances.labels.numpy() for instances in found])[order],
        scores[order],
        np.concatenate(boxes)[order],
        np.concatenate(extents)[order],
        np.concatenate(is_cut)[order],
        [rles[i] for i in order.tolist()],
    )


def _touches_inner_border(extent: NDArray[np.float32], meta: ImageMeta, window: Window) -> NDArray[np.bool_]:
    """Return [N] bool. extent: [N, 4] of masks, in pixels of the window"""
    right, bottom = window.left + meta.width, window.top + meta.height
    return (
        ((extent[:, 0] < _MARGIN) & (window.left > 0))
        | ((extent[:, 1] < _MARGIN) & (window.top > 0))
        | ((extent[:, 2] > meta.width - _MARGIN) & (right < window.image_width))
        | ((extent[:, 3] > meta.height - _MARGIN) & (bottom < window.image_height))
    )


def _agreements(windows: Sequence[tuple[ImageMeta, Window]], parts: _Parts) -> dict[int, list[tuple[float, int]]]:
    """Return, of each instance that agrees with others, their agreements and numbers, best first."""
    found: dict[int, list[tuple[float, int]]] = {}
    of_tile = [np.flatnonzero(parts.tiles == number) for number in range(len(windows))]
    for first, second, overlap in _overlaps(windows):
        ones, others = (_reaching(of_tile[number], parts, overlap) for number in (first, second))
        for label in np.intersect1d(parts.labels[ones], parts.labels[others]).tolist():
            pair = ones[parts.labels[ones] == label], others[parts.labels[others] == label]
            for one, other, agreement in _agreeing(*pair, parts, overlap):
                found.setdefault(one, []).append((agreement, other))
                found.setdefault(other, []).append((agreement, one))
    return {number: sorted(pairs, reverse=True) for number, pairs in found.items()}


def _overlaps(
    windows: Sequence[tuple[ImageMeta, Window]],
) -> Iterator[tuple[int, int, tuple[float, float, float, float]]]:
    """Yield the numbers of two tiles, and the rectangle that they share, xyxy."""
    low = np.array([[window.left, window.top] for _, window in windows], dtype=np.float64)
    high = low + [[meta.width, meta.height] for meta, _ in windows]
    for first in range(len(windows)):
        start, stop = np.maximum(low[first], low[first + 1 :]), np.minimum(high[first], high[first + 1 :])
        for place in np.flatnonzero((start < stop).all(1)).tolist():
            (left, top), (right, bottom) = start[place].tolist(), stop[place].tolist()
            yield first, first + 1 + place, (left, top, right, bottom)


def _reaching(
    numbers: NDArray[np.int64], parts: _Parts, overlap: tuple[float, float, float, float]
) -> NDArray[np.int64]:
    left, top, right, bottom = overlap
    extents = parts.extents[numbers]
    is_inside = (extents[:, 0] < right) & (extents[:, 2] > left) & (extents[:, 1] < bottom) & (extents[:, 3] > top)
    return numbers[is_inside]


def _agreeing(
    ones: NDArray[np.int64], others: NDArray[np.int64], parts: _Parts, overlap: tuple[float, float, float, float]
) -> list[tuple[int, int, float]]:
    """Return pairs of instances, of one tile each, that are one object, with their agreement."""
    left, top, right, bottom = overlap
    height, width = parts.rles[int(ones[0])]["size"]
    box = np.array([[left, top, right - left, bottom - top]], dtype=np.float64)
    (frame,) = mask_utils.frPyObjects(box, height, width)
    shown, shown_others = (
        [mask_utils.merge([parts.rles[i], frame], intersect=True) for i in numbers.tolist()]
        for numbers in (ones, others)
    )
    area, area_of_others = (mask_utils.area(masks).astype(np.float64) for masks in (shown, shown_others))
    # of a crowd, pycocotools gives the intersection over the area of the other mask
    share = np.asarray(mask_utils.iou(shown, shown_others, [1] * len(others)))
    intersection = share * area[:, None]
    agreement = intersection / np.maximum(area[:, None] + area_of_others - intersection, 1.0)
    # of the smaller part, for parts that a border cuts to a sliver
    share_of_others = intersection / np.maximum(area_of_others, 1.0)
    cut, cut_others = parts.is_cut[ones][:, None], parts.is_cut[others][None]
    agreement = np.maximum(agreement, np.where(cut, share, 0.0))
    agreement = np.maximum(agreement, np.where(cut_others, share_of_others, 0.0))
    rows, columns = np.nonzero(agreement >= _LEAST_AGREEMENT)
    return [(int(ones[r]), int(others[c]), float(agreement[r, c])) for r, c in zip(rows, columns, strict=True)]


def _group(
    seed: int, parts: _Parts, neighbours: dict[int, list[tuple[float, int]]], is_taken: NDArray[np.bool_]
) -> list[int]:
    """Return the instances of one object, at most one of each tile, from the best one on; mark them as taken."""
    group, tiles = [seed], {int(parts.tiles[seed])}
    is_taken[seed] = True
    for member in group:
        for _, other in neighbours.get(member, ()):
            if not is_taken[other] and int(parts.tiles[other]) not in tiles:
                is_taken[other] = True
                tiles.add(int(parts.tiles[other]))
                group.append(other)
    return group


def _one(group: Sequence[int], parts: _Parts) -> tuple[int, dict[str, Any], NDArray[np.float32]]:
    """Return number, mask and box of the best whole instance of a group, or of all its parts joined."""
    whole = [number for number in group if not parts.is_cut[number]]
    best = min(whole or group)
    if whole or len(group) == 1:
        return best, parts.rles[best], parts.boxes[best]
    joined = compress(mask_utils.merge([parts.rles[number] for number in group]))
    boxes = parts.boxes[list(group)]
    return best, joined, np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
