"""PNG files of label maps and of panoptic segments, read to run lengths of each value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.coco.label_maps import VOID, IdArray, id_of_colour, runs_of_map
from vispeft.coco.problems import Findings, show
from vispeft.coco.values import sides_of
from vispeft.data.reading.images import Stored, decode_stored, quiet
from vispeft.errors import DataError

_WORTH_THREADS = 16


@dataclass(frozen=True)
class SegmentFile:
    """Values of a PNG file. runs: COCO run lengths of each value"""

    height: int
    width: int
    runs: dict[int, IdArray]

    def rle(self, value: int) -> dict[str, Any]:
        """Return the mask of a value as a COCO file holds it."""
        return {"size": [self.height, self.width], "counts": self.runs[value].tolist()}


SegmentFiles = dict[Path, SegmentFile | DataError]


def read_segment_ids(paths: Iterable[Path]) -> SegmentFiles:
    """Return the segment ids of panoptic PNG files (R + 256 G + 65536 B), or the error of each; 0 is left out."""
    return _read(paths, _segment_ids, VOID)


def read_labels(paths: Iterable[Path]) -> SegmentFiles:
    """Return the values of label maps with one channel, palette indices as such, or the error of each."""
    return _read(paths, _labels, None)


def is_inside_folder(name: str) -> bool:
    """Return True for a file name that cannot lead out of the folder that it is relative to."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


def fitting(
    path: Path, files: SegmentFiles, image: dict[str, Any], subject: str, findings: Findings
) -> SegmentFile | None:
    """Return a file that can be read and has the size of its image; None for another, which is refused.

    image: entry of the COCO file; subject: name of the image or annotation
    """
    file, sides = files[path], sides_of(image)
    if isinstance(file, DataError):
        findings.refuse("unreadable-segments", f"cannot be read: {str(file).removesuffix('.')}.", subject)
        return None
    if sides is not None and sides != (file.height, file.width):
        findings.refuse(
            "segments-size",
            "the PNG of segments has another size than its image, so that they would not fit.",
            f"{subject} ({show(path.name)} {file.width}x{file.height}, image {sides[1]}x{sides[0]})",
        )
        return None
    return file


def _segment_ids(path: Path, stored: Stored) -> NDArray[Any]:
    if stored.is_palette or stored.values.ndim != 3 or stored.values.shape[2] < 3 or stored.values.dtype != np.uint8:
        raise DataError(f"{path} must be an RGB image of 8 bits, whose colours are segment ids.")
    return id_of_colour(stored.values)


def _labels(path: Path, stored: Stored) -> NDArray[Any]:
    if stored.values.ndim != 2 or stored.values.dtype.kind not in "bui":
        raise DataError(f"{path} must have one channel of whole numbers, whose values are category ids.")
    return stored.values.astype(np.int64)


def _read(paths: Iterable[Path], values_of: Callable[[Path, Stored], NDArray[Any]], void: int | None) -> SegmentFiles:
    def attempt(path: Path) -> SegmentFile | DataError:
        try:
            if not path.is_file():
                return DataError(f"{path} does not exist.")
            values = values_of(path, decode_stored(path))
        except DataError as error:
            return error
        except OSError as error:
            # such as a name longer than the file system takes
            return DataError(f"`{show(path.name)}` cannot be looked up ({error.strerror}).")
        height, width = values.shape
        return SegmentFile(height, width, runs_of_map(values, void))

    distinct = sorted(set(paths))
    with quiet():
        if len(distinct) < _WORTH_THREADS:
            return {path: attempt(path) for path in distinct}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip(distinct, pool.map(attempt, distinct), strict=True))
