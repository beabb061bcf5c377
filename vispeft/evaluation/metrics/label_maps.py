"""Label maps of annotations and results, for metrics of pixels and segments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.label_maps import VOID, mask_of, paint
from vispeft.errors import DataError
from vispeft.evaluation.metrics.coco import Scored, read_scored


@dataclass(frozen=True)
class ImageSegments:
    """Segments of one image.

    truths, results: entries of the annotations and of the results, in order
    overlaps: [1 + truths, 1 + results] pixels that a segment of each shares; the first row and column are unlabelled
    """

    truths: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    overlaps: NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSegments:
    """Results with the annotations that they are scored against.

    category_ids, names: ascending by id
    is_thing: of each category
    """

    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    scored: Scored
    warnings: tuple[str, ...]

    def images(self) -> Iterator[ImageSegments]:
        """Yield the segments of every image. Where masks overlap, the first keeps the pixel."""
        ground_truth, columns, masks = self.scored.ground_truth, self.scored.columns, self.scored.masks
        places = zip(columns.image_id.tolist(), columns.category_id.tolist(), strict=True)
        entries = [{"image_id": image_id, "category_id": category_id} for image_id, category_id in places]
        truths = _by_image(zip(ground_truth.annotations, ground_truth.rles, strict=True))
        results = _by_image(zip(entries, [] if masks is None else masks.rles(np.arange(len(entries))), strict=True))
        for image_id, (height, width) in ground_truth.image_sizes.items():
            of_truths, of_results = truths[image_id], results[image_id]
            truth_map, result_map = (_map_of(pairs, height, width) for pairs in (of_truths, of_results))
            shape = len(of_truths) + 1, len(of_results) + 1
            counts = np.bincount((truth_map * shape[1] + result_map).reshape(-1), minlength=shape[0] * shape[1])
            yield ImageSegments(
                [entry for entry, _ in of_truths], [entry for entry, _ in of_results], counts.reshape(shape)
            )


def read_segments(
    annotations: Path | str | dict[str, Any], results: Path | str | list[dict[str, Any]]
) -> ScoredSegments:
    """Read results and annotations with masks, and check them against each other."""
    scored = read_scored(annotations, results)
    if len(scored.columns) and scored.masks is None:
        raise DataError("The results are boxes only; label maps are scored by their masks.")
    flags = {entry["id"]: bool(entry.get("isthing", True)) for entry in scored.ground_truth.categories}
    is_thing = tuple(flags[identifier] for identifier in scored.category_ids)
    return ScoredSegments(scored.category_ids, scored.names, is_thing, scored, scored.ground_truth.warnings)


_Pairs = list[tuple[Mapping[str, Any], Any]]


def _by_image(pairs: Any) -> defaultdict[int, _Pairs]:
    grouped: defaultdict[int, _Pairs] = defaultdict(list)
    for entry, rle in pairs:
        if rle is not None:
            grouped[entry["image_id"]].append((entry, rle))
    return grouped


def _map_of(pairs: _Pairs, height: int, width: int) -> NDArray[np.int64]:
    """Return the place of each pixel's segment plus one, [height, width]."""
    values = np.full((height, width), VOID, np.int64)
    for place, (_, rle) in enumerate(pairs):
        paint(values, mask_of(rle), place + 1)
    return values
