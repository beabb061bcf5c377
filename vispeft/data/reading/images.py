"""Decoder of image files of all common formats to RGB pixels, EXIF orientation applied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from vispeft.data.reading.image_metadata import exif_orientation, turned, without_metadata
from vispeft.data.reading.tiff import TiffLayout, decode_unchanged, is_tiff, read_tiff, tiff_layout
from vispeft.errors import DataError

T = TypeVar("T")

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF", "DIB")
LARGEST_IMAGE = 178_956_970
"""Pixels. From here on Pillow refuses a decompression bomb: 537 MB once decoded."""

_TURNED = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_DEPTHS = (8, 10, 12, 16)
_OVERSHOOT = 1.5
"""Largest value of floating-point pixels that are taken for 0..1: resizing with sharp filters goes beyond 1."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file.

    height, width: as shown (EXIF orientation applied), in pixels
    is_stack: it holds several pictures (an animation, or pages), of which the first is read
    """

    height: int
    width: int
    is_turned: bool
    is_stack: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels. pixels: [h, w, C] uint8, RGB for three, or float32 in 0..255 where they are deeper.

    Each stands for `reduction` x `reduction` pixels of the file.
    """

    pixels: NDArray[Any]
    reduction: int = 1


@dataclass(frozen=True, slots=True)
class _Traits:
    """Orientation, 1 to 8 as in EXIF, and Pillow's name for the form of the pixels in the file."""

    orientation: int
    raw_mode: str


def read_header(path: Path) -> ImageHeader:
    """Read the size of an image file without decoding it. Raises `DataError` where it is no image or too large."""
    return guarded(path, lambda: _header_of(path))


def read_picture(path: Path, *, long_side: int | None = None) -> Picture:
    """Decode an image file to RGB, EXIF orientation applied.

    long_side: where given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its longer side stays
    at least this many pixels, which is several times faster. Raises `DataError` that names the file.
    """
    with quiet():
        return guarded(path, lambda: _decode(path, long_side)[0])


def verify_picture(path: Path) -> ImageHeader:
    """Decode the whole file at the lowest cost, to check that it is complete. Raises `DataError` that names the file.

    Safe in threads; hold `quiet` around them.
    """
    return guarded(path, lambda: _decode(path, 1)[1])


@dataclass(frozen=True, slots=True)
class Stored:
    """Values of an image file as stored, palette indices and deep numbers as such.

    values: [h, w], or [h, w, n] for several channels, the last of 2 or 4 being alpha
    """

    values: NDArray[Any]
    is_palette: bool
    is_stack: bool


def read_stored(path: Path) -> Stored:
    """Decode an image file whose values are numbers, not colours to look at. Raises `DataError` that names the file."""
    with quiet():
        return decode_stored(path)


def decode_stored(path: Path) -> Stored:
    """Return the same as `read_stored`. Safe in threads; hold `quiet` around them."""
    return guarded(path, lambda: _stored(path))


def is_picture(path: Path) -> bool:
    """Return True for a file whose content is of a supported image format; it may still be damaged."""
    # a TGA file has no mark, so that other files may be taken for one
    formats = tuple(name for name in _formats() if name != "TGA")
    try:
        with quiet(), path.open("rb") as file, Image.open(file, formats=formats):
            return True
    except UnidentifiedImageError:
        return is_tiff(path)
    except OSError:
        return False
    # the format was recognised; the reader reports the damage
    except Exception:
        return True


def quiet() -> warnings.catch_warnings[None]:
    """Return a context without warnings: Pillow's concern metadata, which do not change the pixels."""
    return warnings.catch_warnings(action="ignore")


def guarded(path: Path, read: Callable[[], T]) -> T:
    """Return the result of `read`; every error of a decoder becomes a `DataError` that names the file."""
    try:
        return read()
    except DataError:
        raise
    # decoders raise nearly every exception there is on hostile bytes
    except Exception as error:
        raise _unreadable(path, error) from error


def _header_of(path: Path) -> ImageHeader:
    if (layout := _tiff_layout(path)) is not None and layout.is_deep:
        return _tiff_header(layout)
    return _with_image(path, _header)


def _decode(path: Path, long_side: int | None) -> tuple[Picture, ImageHeader]:
    if (layout := _tiff_layout(path)) is not None and layout.is_deep:
        values = read_tiff(path, layout)
        return Picture(_as_rgb(_to_8_bit(values, is_inverted=layout.is_inverted))), _tiff_header(layout)
    return _with_image(path, lambda image, traits: _decode_image(path, image, traits, long_side))


def _stored(path: Path) -> Stored:
    if (layout := _tiff_layout(path)) is not None and layout.is_deep:
        return Stored(read_tiff(path, layout), False, layout.is_stack)
    return _with_image(path, lambda image, traits: _stored_values(path, image, traits))


def _stored_values(path: Path, image: Image.Image, traits: _Traits) -> Stored:
    is_stack = _header(image, traits).is_stack
    image.load()
    is_palette = image.mode in ("P", "PA")
    if _is_deep_png(image, traits):
        values: NDArray[Any] = _read_deep_png(path)
    else:
        values = np.asarray(image if image.mode not in ("CMYK", "YCbCr", "LAB") else image.convert("RGB"))
    # Pillow spreads 2 and 4 bits over 0..255
    for name, spread in (("L;2", 85), ("L;4", 17)):
        values = values // spread if name in traits.raw_mode else values
    return Stored(turned(values, traits.orientation), is_palette, is_stack)


def _decode_image(
    path: Path, image: Image.Image, traits: _Traits, long_side: int | None
) -> tuple[Picture, ImageHeader]:
    header = _header(image, traits)
    longest = max(header.height, header.width)
    if long_side is not None and image.format in ("JPEG", "MPO"):
        reduction = max(r for r in (1, 2, 4, 8) if r == 1 or longest // r >= long_side)
        image.draft("RGB", (max(image.width // reduction, 1), max(image.height // reduction, 1)))
    image.load()
    pixels = _as_rgb(_to_8_bit(_read_deep_png(path))) if _is_deep_png(image, traits) else _to_rgb(image)
    pixels = np.ascontiguousarray(turned(pixels, traits.orientation))
    return Picture(pixels, max(round(longest / max(pixels.shape[:2])), 1)), header


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _tiff_layout(path: Path) -> TiffLayout | None:
    # opening a pipe would wait for ever
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file.")
    layout = tiff_layout(path)
    if layout is not None:
        _check_size(path, layout.width, layout.height)
    return layout


def _with_image(path: Path, use: Callable[[Image.Image, _Traits], T]) -> T:
    """Return the result of `use` on the opened image and its traits, also where its metadata are broken."""
    try:
        # of a path, Pillow would map a TIFF into memory and lay its rows out by the turned width
        with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            _check_size(path, image.width, image.height)
            raw_mode = _raw_mode(image)
            return use(image, _Traits(_orientation_of(image), raw_mode))
    except (DataError, FileNotFoundError, Image.DecompressionBombError):
        raise
    # broken metadata ends in nearly every exception there is
    except Exception:
        bare = without_metadata(path.read_bytes())
        if bare is None:
            raise
        with Image.open(BytesIO(bare[0]), formats=_formats()) as image:
            _check_size(path, image.width, image.height)
            return use(image, _Traits(bare[1], _raw_mode(image)))


def _orientation_of(image: Image.Image) -> int:
    # Pillow's TIFF reader turns the picture, and its size, by itself
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION)
    # broken EXIF ends in nearly every exception there is
    except Exception:
        value = None
    exif = image.info.get("exif")
    if value is None and isinstance(exif, bytes):
        value = exif_orientation(exif)
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > LARGEST_IMAGE:
        raise DataError(
            f"{path} is {width}x{height} pixels, more than the {LARGEST_IMAGE:,} that are read at once; "
            "cut it into tiles."
        )


def _header(image: Image.Image, traits: _Traits) -> ImageHeader:
    is_turned = traits.orientation in _TURNED
    width, height = (image.height, image.width) if is_turned else (image.width, image.height)
    # an MPO's others are previews and second views of the same scene
    is_stack = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return ImageHeader(height, width, is_turned, is_stack)


def _tiff_header(layout: TiffLayout) -> ImageHeader:
    is_turned = layout.orientation in _TURNED
    width, height = (layout.height, layout.width) if is_turned else (layout.width, layout.height)
    return ImageHeader(height, width, is_turned, layout.is_stack)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist.")
    # those of decoders have no number
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path} cannot be read ({error.strerror}).")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(
            f"{path} holds more than the {LARGEST_IMAGE:,} pixels that are read at once; cut it into tiles."
        )
    if isinstance(error, UnidentifiedImageError) and path.stat().st_size == 0:
        return DataError(f"{path} is an empty file.")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path} is not an image in a format that is read ({', '.join(FORMATS)}).")
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return DataError(f"{path} cannot be decoded ({reason}); it is damaged, cut off or of an unusual kind.")


def _raw_mode(image: Image.Image) -> str:
    """Return the mode of the pixels in the file. Decoding loses it, and reading the EXIF of a PNG decodes."""
    return str(image.tile[0][3]) if isinstance(image, ImageFile.ImageFile) and image.tile else ""


def _is_deep_png(image: Image.Image, traits: _Traits) -> bool:
    """Return True for a PNG of 16 bits per channel, of which Pillow would keep the upper 8."""
    return image.format == "PNG" and ";16" in traits.raw_mode and not image.mode.startswith("I")


def _read_deep_png(path: Path) -> NDArray[Any]:
    """Return the 16-bit values of a PNG, as stored: [h, w, 3] RGB, or [h, w] grey."""
    data = path.read_bytes()
    bare = without_metadata(data)
    values = decode_unchanged(data if bare is None else bare[0])
    if values is None:
        raise DataError(f"{path} cannot be decoded (PNG of 16 bits); it is damaged, cut off or of an unusual kind.")
    return values if values.ndim == 2 else values[:, :, 2::-1]


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        return _as_rgb(_to_8_bit(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _as_rgb(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB: grey, [h, w], as three equal channels."""
    return np.ascontiguousarray(values) if values.ndim == 3 else np.repeat(values[:, :, None], 3, axis=2)


def _to_8_bit(raw: NDArray[Any], *, is_inverted: bool = False) -> NDArray[np.uint8]:
    """Convert values of more than 8 bits, [h, w] or [h, w, 3], to uint8.

    Whole numbers are scaled from the least depth of 8, 10, 12 or 16 bits that holds the largest, because 12-bit
    microscopes store their pictures in 16 bits; others from 0..1, 0..255 or else their own range.
    is_inverted: 0 is white
    """
    values = np.nan_to_num(raw.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and raw.dtype.kind in "iu" and high < 65536:
        full_scale = float(2 ** next(depth for depth in _DEPTHS if high < 2**depth) - 1)
        low = 0.0
    elif low >= 0 and high <= 255:
        full_scale, low = (1.0 if high <= _OVERSHOOT else 255.0), 0.0
    else:
        full_scale = max(high - low, 1e-12)
    scaled = np.round((values - low) * (255.0 / full_scale)).clip(0, 255).astype(np.uint8)
    return 255 - scaled if is_inverted else scaled
