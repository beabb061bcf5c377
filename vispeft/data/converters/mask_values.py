"""Instance numbers in a mask file, and checks that the values are instance numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vispeft.data.reading.images import ImageHeader, read_stored
from vispeft.errors import DataError

_UNLABELLED = 255
_HIGHEST = 65535
_FEWEST_SOFT = 3
_SOFT_SHARE = 0.5
_TOUCHING_SHARE = 0.75
_SPECK = 0.02
_MOST = 0.5


def read_values(path: Path, header: ImageHeader) -> NDArray[np.int64]:
    """Return the values of a mask file, [height, width]: palette indices as such, background and unlabelled as 0."""
    stored = read_stored(path)
    if stored.is_stack:
        raise DataError(f"{path} has several pages or frames; save them as a folder with one mask per instance.")
    values = stored.values
    _refuse_lossy(path, values)
    num_channels = values.shape[2] if values.ndim == 3 else 1
    alpha = values[:, :, -1] if num_channels in (2, 4) else None
    if num_channels > 1:
        colours = values[:, :, : 3 if num_channels > 2 else 1]
        _refuse_no_integers(path, colours)
        base = 256 if colours.max() < 256 else 65536
        numbers = sum(colours[:, :, idx].astype(np.int64) * base**idx for idx in range(colours.shape[2]))
    else:
        _refuse_no_integers(path, values)
        numbers = values.astype(np.int64)
    if numbers.shape != (header.height, header.width):
        _refuse_size(path, numbers.shape[1], numbers.shape[0], header)
    # an alpha channel of zeros only is an export fault: it would hide the whole mask
    if alpha is not None and alpha.any():
        numbers = np.where(alpha.astype(np.float64) < alpha.max() / 2, 0, numbers)
    return np.where(numbers == _UNLABELLED, 0, numbers) if stored.is_palette else numbers


def _refuse_lossy(path: Path, values: NDArray[Any]) -> None:
    """Raise `DataError` for a JPEG of more than two values: its compression changes values."""
    with path.open("rb") as file:
        is_jpeg = file.read(3) == b"\xff\xd8\xff"
    if is_jpeg and (num_values := len(np.unique(values))) > 2:
        raise DataError(
            f"{path} has {num_values} values and was saved as JPEG, which changes values, so they are not instance "
            "numbers. Save the mask as PNG from its source; threshold a black-and-white one at half its range."
        )


def _refuse_no_integers(path: Path, values: NDArray[Any]) -> None:
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise DataError(f"{path} has fractional values, such as probabilities, not instance numbers; threshold it.")
    if values.min() < 0 or values.max() > 2**53:
        raise DataError(f"{path} has the value {values.min()}; number instances from 1, with 0 as background.")


def _refuse_size(path: Path, width: int, height: int, header: ImageHeader) -> None:
    is_unturned = header.is_turned and (width, height) == (header.height, header.width)
    hint = " (the image is rotated by its EXIF orientation, the mask is not: rotate it too)" if is_unturned else ""
    raise DataError(f"{path} is {width}x{height}, but its image is {header.width}x{header.height}{hint}.")


def refuse_soft_edges(path: Path, values: NDArray[np.int64]) -> None:
    """Raise `DataError` where most values are scattered pixels between others: soft edges or JPEG artefacts."""
    ranks = _ranks(values)
    square = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(ranks, square), cv2.dilate(ranks, square)
    has_core = np.bincount(ranks[low == high], minlength=_HIGHEST + 1) > 0
    is_thin = (ranks > 0) & ~has_core[ranks]
    num_values = int(np.count_nonzero(np.bincount(ranks.reshape(-1))[1:]))
    num_thin = int(np.count_nonzero(np.bincount(ranks[is_thin])))
    if num_thin < _FEWEST_SOFT or num_thin < _SOFT_SHARE * num_values:
        return
    lowest_object = cv2.erode(np.where(ranks > 0, ranks, _HIGHEST).astype(np.uint16), square)
    is_touching = (high != ranks) | (lowest_object != ranks) | _is_scattered(ranks)
    if (is_thin & is_touching).sum() < _TOUCHING_SHARE * is_thin.sum():
        return
    raise DataError(
        f"{path} has {num_values} values, {num_thin} of them in a few scattered pixels between others: it is an image "
        "with soft edges (antialiased, resized or saved as JPEG), but in a label image every value is one instance. "
        "Threshold a black-and-white one at half its range, number its objects if there are several; save it as PNG."
    )


def _ranks(values: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the values in 16 bits. 0 stays 0; too large values become ranks, and ranks over 65534 are merged."""
    if values.max() < _HIGHEST:
        return values.astype(np.uint16)
    present, order = np.unique(values, return_inverse=True)
    return (order.reshape(values.shape) + int(present[0] > 0)).clip(0, _HIGHEST - 1).astype(np.uint16)


def _is_scattered(ranks: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return the mask of pixels with a value that occurs in many short runs. ranks: [h, w]"""
    padded = np.pad(ranks, 1, constant_values=_HIGHEST)
    above = (padded[:-2, :-2], padded[:-2, 1:-1], padded[:-2, 2:], padded[1:-1, :-2])
    is_start = np.logical_and.reduce([neighbour != ranks for neighbour in above])
    num_starts = np.bincount(ranks[is_start], minlength=_HIGHEST + 1)
    num_pixels = np.bincount(ranks.reshape(-1), minlength=_HIGHEST + 1)
    scattered: NDArray[np.bool_] = ((num_starts >= _FEWEST_SOFT) & (num_pixels < _FEWEST_SOFT * num_starts))[ranks]
    return scattered


def separate_parts(mask: NDArray[np.bool_]) -> int:
    """Return the number of parts of a mask that are more than two pixels apart, without specks."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    near = cv2.dilate(np.pad(cut, 1), np.ones((3, 3), np.uint8))
    areas = cv2.connectedComponentsWithStats(near, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    return int((areas >= max(_SPECK * areas.max(), 1)).sum())


def is_like_background(mask: NDArray[np.bool_]) -> bool:
    """Tell whether a mask covers most of its image and all four corners, as a background does."""
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(corners.all()) and float(mask.mean()) > _MOST
