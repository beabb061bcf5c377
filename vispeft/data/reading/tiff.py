"""TIFF files that Pillow cannot read or cuts off: 16 to 64 bits a channel, signed, floating-point, in planes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vispeft.data.reading.image_metadata import turned
from vispeft.errors import DataError

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED_ALPHA, _ALPHAS = 1, ((1,), (2,))
_PREDICTOR, _HORIZONTAL, _FLOAT_PREDICTOR = 317, 2, 3
_PHOTOMETRIC, _BITS, _SAMPLES, _PLANAR, _FORMAT, _EXTRA, _ORIENTATION = 262, 258, 277, 284, 339, 338, 274
_STRIPS, _TILES = (273, 279), (324, 325)
# what lays out the pixels; orientation is left out, for OpenCV turns some depths and not others
_KEPT = (256, 257, _BITS, 259, _PHOTOMETRIC, 266, *_STRIPS, _SAMPLES, 278, 317, 322, 323, *_TILES, _FORMAT)
_KINDS = {1: "u", 2: "i", 3: "f"}
_REMEDY = "save the three bands that are to be seen as an RGB PNG or TIFF"


@dataclass(frozen=True)
class TiffLayout:
    """Layout of the pixels of the first picture in a TIFF file.

    height, width: as stored, before `orientation` (1 to 8, as in EXIF)
    bands, bits, kind: channels; bits of each; `u`, `i` or `f` for unsigned, signed and floating-point
    extra: meanings of the bands beyond grey or RGB; 1 and 2 are alpha
    """

    height: int
    width: int
    bands: int
    bits: int
    kind: str
    photometric: int
    extra: tuple[int, ...]
    is_planar: bool
    orientation: int
    is_stack: bool
    tags: ImageFileDirectory_v2

    @property
    def is_inverted(self) -> bool:
        """Tell whether 0 is white."""
        return self.photometric == _WHITE_IS_ZERO

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.height, self.width

    @property
    def is_plain(self) -> bool:
        """Tell whether the bands hold grey, RGB or undeclared values of whole bytes, which `read_bands` reads."""
        is_colour_space = self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        return is_colour_space and self.bits in (8, 16, 32, 64)

    @property
    def is_deep(self) -> bool:
        """Tell whether `read_tiff` is needed, because Pillow does not read the file right."""
        if self.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or self.bits not in (8, 16, 32, 64):
            return False
        return self.bits > 8 or self.kind != "u" or (self.is_planar and self.bands > 3)


def is_tiff(path: Path) -> bool:
    """Tell whether a file begins as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in _MAGICS


def tiff_layout(path: Path) -> TiffLayout | None:
    """The layout of a TIFF file, or None for another. Raises `DataError` where its bands are no grey and no RGB."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] not in _MAGICS:
            return None
        head += file.read(8) if b"+" in head[2:4] else b""
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
    layout = _layout(tags)
    _check_bands(path, layout)
    return layout


def layouts_of_pages(path: Path) -> list[TiffLayout]:
    """Return the layout of every page of a TIFF file. Pages that the header does not list as full images count too."""
    pages: list[TiffLayout] = []
    with path.open("rb") as file:
        head = file.read(8)
        head += file.read(8) if b"+" in head[2:4] else b""
        place, seen = ImageFileDirectory_v2(head).next, set()
        while place and place not in seen:
            seen.add(place)
            tags = ImageFileDirectory_v2(head)
            file.seek(place)
            tags.load(file)
            pages.append(_layout(tags))
            place = tags.next
    if not pages:
        raise DataError(f"{path} cannot be decoded (no page); it is damaged or cut off.")
    return pages


def _layout(tags: ImageFileDirectory_v2) -> TiffLayout:
    bits = tags.get(_BITS, (1,))
    return TiffLayout(
        height=int(tags[257]),
        width=int(tags[256]),
        bands=int(tags.get(_SAMPLES, 1)),
        bits=int(bits[0]) if len(set(bits)) == 1 else 0,
        kind=_KINDS.get(tags.get(_FORMAT, (1,))[0], "?"),
        photometric=int(tags.get(_PHOTOMETRIC, 0)),
        extra=tuple(tags.get(_EXTRA, ())),
        is_planar=tags.get(_PLANAR, 1) == 2,
        orientation=_orientation(tags),
        is_stack=bool(tags.next),
        tags=tags,
    )


def _orientation(tags: ImageFileDirectory_v2) -> int:
    value = tags.get(_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def _check_bands(path: Path, layout: TiffLayout) -> None:
    """Refuse bands without declared colours: the first alone, or the first three, would be a guess."""
    has_alpha = layout.bands == 2 and layout.extra[:1] in _ALPHAS
    if layout.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and layout.bands > 1 and not has_alpha:
        raise DataError(
            f"{path} holds {layout.bands} bands of {layout.bits} bits that are not declared as red, green and blue; "
            f"{_REMEDY}."
        )


def read_tiff(path: Path, layout: TiffLayout) -> NDArray[Any]:
    """The values of a deep TIFF file, turned as its orientation says. Returns [h, w] grey, or [h, w, 3] RGB."""
    data = path.read_bytes()
    offsets, counts = _chunks(path, layout)
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise DataError(f"{path} is cut off: it ends before its pixels do.")
    num_colours = 3 if layout.photometric == _RGB else 1
    if layout.is_planar and layout.bands > 1:
        per_band = len(offsets) // layout.bands
        planes = [_read_plane(path, layout, data, slice(i * per_band, (i + 1) * per_band)) for i in range(num_colours)]
        values = np.stack(planes, 2) if num_colours == 3 else planes[0]
    elif layout.bands == 1 or (num_colours == 3 and layout.bands <= 4):
        values = _read_interleaved(path, layout, data)
    else:
        raise DataError(f"{path} holds {layout.bands} bands of {layout.bits} bits, which are not read; {_REMEDY}.")
    return turned(values, layout.orientation)


def read_bands(path: Path, layout: TiffLayout) -> NDArray[Any]:
    """Return the values of all bands of one page as stored: [height, width, bands]."""
    data = path.read_bytes()
    offsets, counts = _chunks(path, layout)
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise DataError(f"{path} is cut off: it ends before its pixels do.")
    if layout.bands == 1:
        return _read_plane(path, layout, data, slice(None))[:, :, None]
    if layout.is_planar:
        per_band = len(offsets) // layout.bands
        parts = [slice(i * per_band, (i + 1) * per_band) for i in range(layout.bands)]
        return np.stack([_read_plane(path, layout, data, part) for part in parts], 2)
    return _read_side_by_side(path, layout, data)


def _read_side_by_side(path: Path, layout: TiffLayout, data: bytes) -> NDArray[Any]:
    """Return interleaved bands, decoded as one grey image of as many times the width: its bytes are the same."""
    predictor = layout.tags.get(_PREDICTOR, 1)
    if predictor not in (1, _HORIZONTAL) or layout.tags.get(259, 1) in (6, 7):
        raise DataError(
            f"{path} holds {layout.bands} bands in a compression that is not read; save it with LZW, deflate or none."
        )
    wide = replace(layout, width=layout.width * layout.bands, bands=1, is_planar=False)
    own = {256: wide.width, _SAMPLES: 1, _PHOTOMETRIC: _BLACK_IS_ZERO, _PREDICTOR: 1}
    if _TILES[0] in layout.tags:
        own[322] = layout.tags[322] * layout.bands
    values = _decode(path, wide, _with_tags(path, wide, data, own, bands=1))
    values = values.reshape(layout.height, layout.width, layout.bands)
    if predictor == _HORIZONTAL:
        # differences to the pixel before, in each row of a strip or tile
        span = int(layout.tags[322]) if _TILES[0] in layout.tags else layout.width
        for left in range(0, layout.width, span):
            part = values[:, left : left + span]
            np.cumsum(part, axis=1, dtype=values.dtype, out=part)
    return values


def _chunks(path: Path, layout: TiffLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and byte counts of the strips or tiles."""
    offsets_tag, counts_tag = _TILES if _TILES[0] in layout.tags else _STRIPS
    offsets, counts = layout.tags.get(offsets_tag, ()), layout.tags.get(counts_tag, ())
    if not offsets or len(offsets) != len(counts):
        raise DataError(f"{path} cannot be decoded (no list of strips or tiles); it is damaged or cut off.")
    return offsets, counts


def _read_plane(path: Path, layout: TiffLayout, data: bytes, part: slice) -> NDArray[Any]:
    """One band of a file that holds them one after the other, as if it were a grey file."""
    offsets, counts = _chunks(path, layout)
    offsets_tag, counts_tag = _TILES if _TILES[0] in layout.tags else _STRIPS
    own = {offsets_tag: offsets[part], counts_tag: counts[part], _SAMPLES: 1, _PHOTOMETRIC: _BLACK_IS_ZERO}
    return _decode(path, layout, _with_tags(path, layout, data, own, bands=1))


def _read_interleaved(path: Path, layout: TiffLayout, data: bytes) -> NDArray[Any]:
    own = {_EXTRA: (0,)} if layout.bands == 4 else {}
    values = _decode(path, layout, _with_tags(path, layout, data, own, bands=layout.bands))
    if layout.bands == 1:
        return values
    colours = values[:, :, 2::-1]
    if layout.extra[:1] == (_ASSOCIATED_ALPHA,) and layout.bands == 4 and layout.bits < 64:
        full = np.iinfo(values.dtype).max if layout.kind != "f" else 1
        alpha = values[:, :, 3:] / full
        colours = np.divide(colours, alpha, out=np.zeros(colours.shape), where=alpha > 0)
        colours = colours.clip(None, full).astype(values.dtype)
    return colours


def _with_tags(path: Path, layout: TiffLayout, data: bytes, own: dict[int, Any], *, bands: int) -> bytes:
    """The file with a new directory at its end, which lists only the tags of the pixels' layout."""
    if data[2:4] in (b"+\0", b"\0+"):
        if layout.orientation != 1 or (layout.is_planar and layout.bands > 1):
            raise DataError(f"{path} is a BigTIFF file of an unusual kind; {_REMEDY}.")
        return data
    # half-precision numbers come as whole ones of 16 bits, which OpenCV can read
    kind = 1 if _is_half(layout) else {"u": 1, "i": 2, "f": 3}.get(layout.kind, 1)
    kept = {tag: layout.tags[tag] for tag in _KEPT if tag in layout.tags}
    depth = {_BITS: (layout.bits,) * bands, _FORMAT: (kind,) * bands}
    return _with_directory(data, {**kept, **own, **depth})


def _with_directory(data: bytes, tags: dict[int, Any]) -> bytes:
    """A TIFF file with a directory of whole numbers at its end in place of its own."""
    order = "<" if data[:2] == b"II" else ">"
    start = len(data) + len(data) % 2
    entries, values = b"", b""
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        is_short = tag not in (*_STRIPS, *_TILES) and max(numbers) < 65536
        packed = struct.pack(f"{order}{len(numbers)}{'H' if is_short else 'I'}", *numbers)
        field = packed.ljust(4, b"\0")
        if len(packed) > 4:
            field = struct.pack(order + "I", start + 6 + 12 * len(tags) + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack(order + "HHI", tag, 3 if is_short else 4, len(numbers)) + field
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4) + values
    return data[:4] + struct.pack(order + "I", start) + data[8:].ljust(start - 8, b"\0") + directory


def _is_half(layout: TiffLayout) -> bool:
    return (layout.kind, layout.bits) == ("f", 16) and layout.tags.get(_PREDICTOR, 1) != _FLOAT_PREDICTOR


def _decode(path: Path, layout: TiffLayout, data: bytes) -> NDArray[Any]:
    """[height, width] or [height, width, 3 or 4] BGR(A) as stored."""
    values = decode_unchanged(data)
    if values is None or values.shape[:2] != (layout.height, layout.width):
        compression = layout.tags.get(259, 1)
        raise DataError(
            f"{path} cannot be decoded (TIFF of {layout.bands} bands of {layout.bits} bits, compression {compression});"
            f" it is damaged or of an unusual kind: {_REMEDY}."
        )
    return values.view(np.float16) if _is_half(layout) else values


def decode_unchanged(data: bytes) -> NDArray[Any] | None:
    """Decode an image with OpenCV, in its own depth and order of channels. Returns None where it fails."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    return values
