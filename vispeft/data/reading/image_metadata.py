"""Metadata of image files: EXIF orientation, and removal of broken metadata from PNG and JPEG files."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ORIENTATION = 0x0112
_EXIF_MARK = b"Exif\0\0"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_START, _JPEG_SCAN, _JPEG_COMMENT = b"\xff\xd8", 0xDA, 0xFE
# JFIF and Adobe segments define the colour space
_JPEG_KEPT = (0xE0, 0xEE)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in an EXIF block of which other parts may be broken or missing; 1 without one."""
    while exif.startswith(_EXIF_MARK):
        exif = exif.removeprefix(_EXIF_MARK)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    start = struct.unpack_from(order + "I", exif, 4)[0] + 2
    for place in range(start, len(exif) - 9, 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, place)
        if tag == _ORIENTATION:
            return int(value) if (kind, count) == (3, 1) and value in range(1, 9) else 1
    return 1


def turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return pixels, [h, w, ...], turned and mirrored by an EXIF orientation."""
    if orientation in (2, 4, 5, 7):
        values = values[:, ::-1]
    return np.rot90(values, {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0))


def without_metadata(data: bytes) -> tuple[bytes, int] | None:
    """Return a PNG or JPEG file with nothing but its pixels, and its orientation; None for other formats."""
    if data.startswith(_PNG_MAGIC):
        return _bare_png(data)
    if data.startswith(_JPEG_START):
        return _bare_jpeg(data)
    return None


def _bare_png(data: bytes) -> tuple[bytes, int]:
    parts, orientation, place = [_PNG_MAGIC], 1, len(_PNG_MAGIC)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind in _PNG_KEPT:
            parts.append(data[place:end])
        elif kind == b"eXIf" and data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[place + 4 : end - 4])):
            orientation = exif_orientation(data[place + 8 : end - 4])
        place = end
    return b"".join(parts), orientation


def _bare_jpeg(data: bytes) -> tuple[bytes, int]:
    parts, orientation, place = [_JPEG_START], 1, len(_JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _JPEG_SCAN:
        marker, length = struct.unpack_from(">BH", data, place + 1)
        segment = data[place : place + 2 + length]
        is_metadata = (0xE0 <= marker <= 0xEF and marker not in _JPEG_KEPT) or marker == _JPEG_COMMENT
        if not is_metadata:
            parts.append(segment)
        elif segment[4:].startswith(_EXIF_MARK):
            orientation = exif_orientation(segment[4:])
        place += 2 + length
    return b"".join((*parts, data[place:])), orientation
