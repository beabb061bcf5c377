"""Images of any number of channels: grey, multispectral, TIFF stacks, arrays of numpy.

Values keep their depth and have a scale that does not depend on the image: 8 bits as they are, 16 bits times
255 / 65535, floating-point numbers times 255, all in float32 except 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.data.reading.images import (
    LARGEST_IMAGE,
    ImageHeader,
    Picture,
    guarded,
    quiet,
    read_picture,
    read_stored,
    verify_picture,
)
from vispeft.data.reading.tiff import is_tiff
from vispeft.data.reading.tiff_stack import read_tiff_channels
from vispeft.errors import DataError

RGB = 3
_NUMPY = ".npy"
# factors on the values of a type
_SCALES = {"uint8": 1.0, "uint16": 255 / 65535, "float16": 255.0, "float32": 255.0, "float64": 255.0}


def read_image(path: Path, num_channels: int = RGB, *, long_side: int | None = None) -> Picture:
    """Decode an image file to `num_channels` channels; RGB for three, see `read_picture`.

    Four channels are also those of an RGB image with alpha, and one channel is also the brightness of a colour image.
    Raises `DataError` that names the file.
    """
    if num_channels == RGB and path.suffix != _NUMPY:
        return read_picture(path, long_side=long_side)
    with quiet():
        return Picture(guarded(path, lambda: _scaled(path, _values(path, num_channels))))


def verify_image(path: Path, num_channels: int = RGB) -> ImageHeader:
    """Decode a file at the lowest cost, to check that it is complete and has the channels. Raises `DataError`."""
    if num_channels == RGB and path.suffix != _NUMPY:
        return verify_picture(path)
    height, width = read_image(path, num_channels).pixels.shape[:2]
    return ImageHeader(height, width, False, False)


def read_for_display(path: Path) -> NDArray[np.uint8]:
    """Return an image file as RGB to look at: [h, w, 3]. Of other channels the first three are shown, or grey."""
    try:
        return read_picture(path).pixels
    except DataError:
        values = guarded(path, lambda: _values(path, None))
        return shown(_scaled(path, values))


def shown(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels [h, w, C] of any channels as RGB to look at: [h, w, 3], the first three or grey.

    Deeper ones are stretched to their own range, between the first and the last of a hundred.
    """
    chosen = pixels[:, :, :3] if pixels.shape[2] >= RGB else np.repeat(pixels[:, :, :1], 3, axis=2)
    if chosen.dtype == np.uint8:
        return np.ascontiguousarray(chosen)
    low, high = np.percentile(chosen, (1, 99))
    return np.asarray(((chosen - low) * (255 / max(high - low, 1e-6))).clip(0, 255), np.uint8)


def _values(path: Path, num_channels: int | None) -> NDArray[Any]:
    """Return the stored values, [h, w, C]. num_channels: C; None: as many as there are"""
    if path.suffix == _NUMPY:
        return _of_array(path, np.load(path, allow_pickle=False), num_channels)
    if is_tiff(path):
        found = read_tiff_channels(path, num_channels)
        if found is not None:
            return found
    stored = read_stored(path)
    values = stored.values if stored.values.ndim == 3 else stored.values[:, :, None]
    if num_channels == 1 and (stored.is_palette or values.shape[2] in (3, 4)):
        return _brightness(read_picture(path).pixels)
    if num_channels == 1 and values.shape[2] == 2:
        values = values[:, :, :1]
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    return _checked(path, values, num_channels)


def _of_array(path: Path, values: NDArray[Any], num_channels: int | None) -> NDArray[Any]:
    """Return [h, w, C] of an array [h, w], [h, w, C] or [C, h, w]."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or not values.size:
        raise DataError(f"{path} must be an array [h, w], [h, w, C] or [C, h, w], but is {list(values.shape)}.")
    is_first = values.shape[0] == num_channels if num_channels else values.shape[0] < values.shape[2]
    if is_first and values.shape[2] != num_channels:
        values = values.transpose(1, 2, 0)
    return _checked(path, values, num_channels)


def _brightness(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the brightness of RGB pixels, as Pillow's mode L: [h, w, 1]."""
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(grey)[:, :, None].astype(np.uint8)


def _checked(path: Path, values: NDArray[Any], num_channels: int | None) -> NDArray[Any]:
    height, width, found = values.shape
    if height * width > LARGEST_IMAGE:
        raise DataError(f"{path} is {width}x{height} pixels, more than the {LARGEST_IMAGE:,} that are read at once.")
    if num_channels is not None and found != num_channels:
        raise DataError(
            f"{path} must have {num_channels} channels (`model.in_chans`), but has {found}. Change "
            "`model.in_chans`, or the file."
        )
    return values


def _scaled(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    name = values.dtype.newbyteorder("=").name
    if name not in _SCALES:
        raise DataError(
            f"{path} must hold values of 8 or 16 bits without sign, or floating-point numbers in 0..1, but holds "
            f"{name}."
        )
    if name == "uint8":
        return np.ascontiguousarray(values)
    scaled = values.astype(np.float32) * np.float32(_SCALES[name])
    return np.ascontiguousarray(np.nan_to_num(scaled, posinf=0.0, neginf=0.0))
