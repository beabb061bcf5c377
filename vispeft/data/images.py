"""Image files of every common kind as RGB pixels, as they are meant to be seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vispeft.errors import DataError

T = TypeVar("T")

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF", "DIB")
LARGEST_IMAGE = 89_478_485
"""Pixels. Pillow's own mark for a decompression bomb: 268 MB once decoded."""

_TURNED = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_DEPTHS = (8, 10, 12, 16)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says of itself.

    height, width: as shown (EXIF orientation applied), in pixels
    is_stack: it holds several pictures (an animation, or pages), of which the first is read
    """

    height: int
    width: int
    is_turned: bool
    is_stack: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels. pixels: [h, w, 3] uint8 RGB; each stands for `reduction` x `reduction` pixels of the file."""

    pixels: NDArray[np.uint8]
    reduction: int = 1


def read_header(path: Path) -> ImageHeader:
    """The size of an image file without decoding it. Raises `DataError` for a file that is none or is too large."""
    return _guarded(path, lambda: _header_of(path))


def read_picture(path: Path, *, long_side: int | None = None) -> Picture:
    """Decode an image file to RGB, EXIF orientation applied.

    long_side: where given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its longer side stays
    at least this many pixels, which is several times faster. Raises `DataError` that names the file.
    """
    with quiet():
        return _guarded(path, lambda: _decode(path, long_side)[0])


def verify_picture(path: Path) -> ImageHeader:
    """Decode the whole file at the least cost, to know that it is all there. Raises `DataError` that names the file.

    Safe in threads; hold `quiet` around them.
    """
    return _guarded(path, lambda: _decode(path, 1)[1])


def quiet() -> warnings.catch_warnings[None]:
    """A context without warnings: Pillow's are about metadata, which do not concern the pixels."""
    return warnings.catch_warnings(action="ignore")


def _guarded(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except DataError:
        raise
    # decoders raise nearly every exception there is on hostile bytes
    except Exception as error:
        raise _unreadable(path, error) from error


def _header_of(path: Path) -> ImageHeader:
    with _open(path) as image:
        return _header(image)


def _decode(path: Path, long_side: int | None) -> tuple[Picture, ImageHeader]:
    with _open(path) as image:
        header = _header(image)
        longest = max(header.height, header.width)
        if long_side is not None and image.format in ("JPEG", "MPO"):
            reduction = max(r for r in (1, 2, 4, 8) if r == 1 or longest // r >= long_side)
            image.draft("RGB", (max(image.width // reduction, 1), max(image.height // reduction, 1)))
        image.load()
        pixels = _to_rgb(ImageOps.exif_transpose(image))
    return Picture(pixels, max(round(longest / max(pixels.shape[:2])), 1)), header


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(path: Path) -> Image.Image:
    # opening a pipe would wait for ever
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file.")
    image = Image.open(path, formats=_formats())
    if image.width * image.height > LARGEST_IMAGE:
        raise DataError(
            f"{path} is {image.width}x{image.height} pixels, more than the {LARGEST_IMAGE:,} that are read at once; "
            "cut it into tiles."
        )
    return image


def _header(image: Image.Image) -> ImageHeader:
    # Pillow's TIFF reader turns the picture, and its size, by itself
    is_turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED
    width, height = (image.height, image.width) if is_turned else (image.width, image.height)
    # an MPO's others are previews and second views of the same scene
    is_stack = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return ImageHeader(height, width, is_turned, is_stack)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist.")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(
            f"{path} holds more than the {LARGEST_IMAGE:,} pixels that are read at once; cut it into tiles."
        )
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path} is not an image in a format that is read ({', '.join(FORMATS)}).")
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return DataError(f"{path} cannot be decoded ({reason}); it is damaged, cut off or of an unusual kind.")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bit(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _to_8_bit(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits, [h, w], as uint8.

    Whole numbers are scaled from the least depth of 8, 10, 12 or 16 bits that holds the largest, because 12-bit
    microscopes store their pictures in 16 bits; others from 0..1, 0..255 or else their own range.
    """
    values = np.nan_to_num(grey.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and grey.dtype.kind in "iu" and high < 65536:
        full_scale = float(2 ** next(depth for depth in _DEPTHS if high < 2**depth) - 1)
        low = 0.0
    elif low >= 0 and high <= 255:
        full_scale, low = (1.0 if high <= 1 else 255.0), 0.0
    else:
        full_scale = max(high - low, 1e-12)
    return np.round((values - low) * (255.0 / full_scale)).astype(np.uint8)
