"""Instance masks as polygons or run lengths, as COCO files hold them. Pixels are drawn only where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vispeft.coco.rle import decode_columns, run_lengths, size_of
from vispeft.coco.values import as_number

FloatArray = NDArray[np.float64]
MaskArray = NDArray[np.uint8]

FARTHEST_COORDINATE = 1e7
MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class Polygons:
    """One instance as polygons that are united. parts: [P, 2] float64 each, (x, y) in absolute pixels, P at least 3."""

    parts: tuple[FloatArray, ...]

    @property
    def extent(self) -> tuple[FloatArray, FloatArray]:
        """Corners of the box around the points, x and y each: the least and the largest."""
        return np.min([part.min(0) for part in self.parts], 0), np.max([part.max(0) for part in self.parts], 0)


@dataclass(frozen=True, slots=True)
class Rle:
    """One instance as COCO run lengths.

    runs: [R] int64, lengths of background, object, background, ... in column-major order; they sum to height * width
    columns: first and one past the last column that hold an object pixel
    """

    height: int
    width: int
    runs: NDArray[np.int64]
    columns: tuple[int, int]

    def crop(self, left: int, right: int) -> MaskArray:
        """Return the columns `left` to `right` (exclusive): [height, right - left] uint8 of 0 and 1."""
        return decode_columns(self.runs, self.height, left, right)

    @property
    def extent(self) -> tuple[FloatArray, FloatArray]:
        """Corners of the box around the object, x and y each: the least, and one past the largest."""
        ends = np.cumsum(self.runs)[1::2]
        starts = ends - self.runs[1::2]
        starts, ends = starts[starts < ends], ends[starts < ends] - 1
        top, bottom = 0, self.height
        # a run that goes on in the next column touches both edges
        if len(ends) and (starts // self.height == ends // self.height).all():
            top, bottom = int((starts % self.height).min()), int((ends % self.height).max()) + 1
        return np.array([self.columns[0], top], np.float64), np.array([self.columns[1], bottom], np.float64)


Segmentation = Polygons | Rle


@dataclass(frozen=True)
class Flaw:
    """Reason that a segmentation cannot be used. kind: short name; sentence: for a message; detail: its numbers."""

    kind: str
    sentence: str
    detail: str = ""


def parse_segmentation(value: Any, height: int, width: int) -> Segmentation | Flaw:
    """Return the segmentation of a JSON value for an image of `height` x `width`, or its flaw."""
    if value is None or value == [] or value == {}:
        sentence = "has no `segmentation`; it is left out, for a mask is never invented (`task: detection` needs none)"
        return Flaw("missing-segmentation", sentence)
    if isinstance(value, dict):
        return _parse_rle(value, height, width)
    if isinstance(value, list):
        return _parse_polygons(value)
    return Flaw("bad-segmentation", "`segmentation` must be a list of polygons or an RLE object; it is left out")


def _parse_polygons(value: list[Any]) -> Polygons | Flaw:
    """Return the polygons of at least three points, or the flaw of a list that has none."""
    bad = "`segmentation` must be a list of polygons, each a flat list of numbers [x1, y1, x2, y2, ...]; it is left out"
    parts = []
    for part in value:
        if not isinstance(part, list):
            return Flaw("bad-polygon", bad)
        numbers = [as_number(n) for n in part]
        if any(n is None or abs(n) > FARTHEST_COORDINATE for n in numbers):
            return Flaw("bad-polygon", bad + " (NaN, text, nested lists and numbers beyond 1e7 are no coordinates)")
        if len(numbers) % 2:
            return Flaw("odd-polygon", "has a polygon with an odd count of numbers; it is left out", str(len(numbers)))
        if len(numbers) >= 6:
            parts.append(np.array(numbers, np.float64).reshape(-1, 2))
    if parts:
        return Polygons(tuple(parts))
    longest = max(len(part) for part in value)
    return Flaw(
        "short-polygon", "a polygon needs at least three points (six numbers); it is left out", f"{longest} numbers"
    )


def _parse_rle(value: dict[str, Any], height: int, width: int) -> Rle | Flaw:
    """Return the mask of an RLE that describes exactly `height` x `width` pixels, or its flaw."""
    try:
        size = size_of(value)
    except ValueError:
        return Flaw("bad-rle", "an RLE must hold `size` [height, width] and `counts`; it is left out")
    if size != (height, width):
        detail = f"RLE {size[0]}x{size[1]}, image {height}x{width}"
        return Flaw(
            "rle-size", "`size` of the RLE differs from the height x width of its image; it is left out", detail
        )
    bad = Flaw("bad-rle", "`counts` of the RLE are no valid run lengths; it is left out")
    try:
        runs = run_lengths(value.get("counts"))
    except ValueError:
        return bad
    if not len(runs) or (runs < 0).any() or len(runs) > 2 * height * width + 2:
        return bad
    if int(runs.sum()) != height * width:
        detail = f"{int(runs.sum())} pixels, image {height}x{width}"
        return Flaw("rle-sum", "`counts` of the RLE do not sum to the size of the image; it is left out", detail)
    return make_rle(runs, height, width)


def make_rle(runs: NDArray[np.int64], height: int, width: int) -> Rle:
    """Return the mask of valid run lengths, with its columns."""
    ends = np.cumsum(runs)
    objects = (
        [i for i in range(1, len(runs), 2) if runs[i] > 0] if len(runs) < 64 else np.flatnonzero(runs[1::2]) * 2 + 1
    )
    if len(objects) == 0:
        return Rle(height, width, runs, (0, 0))
    first, last = int(ends[objects[0] - 1]), int(ends[objects[-1]]) - 1
    return Rle(height, width, runs, (first // height, last // height + 1))


def encode_segmentation(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Return pycocotools' compressed RLE ({"size": [height, width], "counts": bytes}) of one instance, clipped."""
    if isinstance(segmentation, Rle):
        runs = {"size": [height, width], "counts": segmentation.runs.tolist()}
        rle: dict[str, Any] = coco_mask.frPyObjects(runs, height, width)
        return rle
    flat = [part.reshape(-1) for part in near(segmentation.parts, width, height)]
    if not flat:
        return {"size": [height, width], "counts": coco_mask.encode(np.zeros((height, width), np.uint8, "F"))["counts"]}
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
    return merged


def near(parts: Sequence[FloatArray], width: float, height: float) -> list[FloatArray]:
    """Cut parts that reach far beyond the frame, as drawing costs grow with length. Empty parts are dropped."""
    reach = max(width, height)
    kept = []
    for part in parts:
        low, high = part.min(0), part.max(0)
        if (low >= -reach).all() and high[0] <= width + reach and high[1] <= height + reach:
            kept.append(part)
        elif (high > 0).all() and low[0] < width and low[1] < height:
            cut = clip_polygon(part, (-MARGIN, -MARGIN), (width + MARGIN, height + MARGIN))
            if len(cut) >= 3:
                kept.append(cut)
    return kept


def clip_polygon(points: FloatArray, low: tuple[float, float], high: tuple[float, float]) -> FloatArray:
    """Return a polygon cut to a rectangle (Sutherland and Hodgman 1974).

    points: [P, 2]. Returns [P', 2], where P' may be 0.
    """
    for axis in (0, 1):
        for bound, sign in ((low[axis], 1.0), (high[axis], -1.0)):
            distance = sign * (points[:, axis] - bound)
            inside = distance >= 0
            following = np.roll(points, -1, 0)
            crosses = inside != np.roll(inside, -1)
            span = np.where(crosses, distance - np.roll(distance, -1), 1.0)
            crossing = points + (distance / span)[:, None] * (following - points)
            points = np.stack([points, crossing], 1)[np.stack([inside, crosses], 1)]
            if len(points) == 0:
                return points
    return points


def rasterize(parts: Sequence[FloatArray], height: int, width: int, out: NDArray[Any]) -> bool:
    """Set to 1 the pixels of `out` ([height, width], zeros) that polygons cover by COCO's rule.

    Return False if there is none. Only the bounding rectangle is decoded, so the cost follows the size of the object,
    not of the image.
    """
    parts = near(parts, width, height)
    # a part beside the frame leaves no pixel in it
    parts = [p for p in parts if (p.max(0) > 0).all() and (p.min(0) < (width, height)).all()]
    if not parts:
        return False
    low = np.min([part.min(0) for part in parts], 0)
    high = np.max([part.max(0) for part in parts], 0)
    left, top = max(int(low[0]) - 1, 0), max(int(low[1]) - 1, 0)
    right, bottom = min(int(high[0]) + 2, width), min(int(high[1]) + 2, height)
    shifted = [(part - (left, top)).reshape(-1) for part in parts]
    rles = coco_mask.frPyObjects(shifted, bottom - top, right - left)
    out[top:bottom, left:right] = coco_mask.decode(rles if len(rles) == 1 else [coco_mask.merge(rles)])[:, :, 0]
    return True
