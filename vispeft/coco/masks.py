"""Many masks as compressed RLE, with the measures by which most pairs of them can be told apart without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.rle_batch import RleMeasures, measure_rles


@dataclass(frozen=True)
class Masks:
    """N masks as compressed RLE.

    sizes: [N, 2] int64, height and width
    texts: `counts` of each
    measures: area and extent of each
    """

    sizes: NDArray[np.int64]
    texts: Sequence[str]
    measures: RleMeasures

    def __len__(self) -> int:
        return len(self.texts)

    def rles(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return some of the masks in the form that pycocotools accepts."""
        texts, sizes = self.texts, self.sizes[rows].tolist()
        return [{"size": size, "counts": texts[row]} for row, size in zip(rows.tolist(), sizes, strict=True)]


def measured_masks(sizes: NDArray[np.int64], texts: Sequence[str]) -> Masks:
    """Return masks with their measures. sizes: [N, 2], height and width"""
    return Masks(sizes, texts, measure_rles(texts, sizes[:, 0] * sizes[:, 1]))


def concatenated_masks(parts: Sequence[Masks]) -> Masks:
    """Return the masks of several parts, of which there is at least one, in order."""
    measures = [part.measures for part in parts]
    return Masks(
        np.concatenate([part.sizes for part in parts]),
        list(chain.from_iterable(part.texts for part in parts)),
        RleMeasures(
            np.concatenate([one.is_sound for one in measures]),
            np.concatenate([one.area for one in measures]),
            np.concatenate([one.begin for one in measures]),
            np.concatenate([one.end for one in measures]),
        ),
    )
