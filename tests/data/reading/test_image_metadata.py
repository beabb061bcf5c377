from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vispeft.data.reading.image_metadata import exif_orientation
from vispeft.data.reading.images import read_header, read_picture, verify_picture
from vispeft.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
TURNED = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
NEXT = struct.pack("<I", 0)


def exif(*entries: bytes, count: int | None = None, tail: bytes = NEXT) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, len(entries) if count is None else count) + b"".join(entries) + tail


def encoded(kind: str) -> bytes:
    file = BytesIO()
    Image.fromarray(COLOUR).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def shown(path: Path) -> np.ndarray[Any, Any]:
    pixels = read_picture(path).pixels
    for header in (read_header(path), verify_picture(path)):
        assert pixels.shape == (header.height, header.width, 3)
    return pixels


LONG_TEXT = zlib.compress(b"a" * (1 << 22))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT),
        chunk(b"iTXt", b"XML\0\1\0\0\0" + LONG_TEXT),
        chunk(b"tEXt", b"Comment\0" + b"a" * (3 << 20)),
        chunk(b"iCCP", b"profile\0\0no zlib"),
        chunk(b"tEXt", b"a\0b", checksum=5),
        chunk(b"pHYs", b"\0"),
        chunk(b"cHRM", b"12"),
    ],
    ids=["long-ztxt", "long-itxt", "long-text", "profile", "checksum", "short-phys", "short-chrm"],
)
@pytest.mark.parametrize("is_behind", [False, True], ids=["before-pixels", "behind-pixels"])
def test_read_picture__survives_broken_png_chunks(tmp_path: Path, broken: bytes, is_behind: bool) -> None:
    data = encoded("PNG")
    place = len(data) - 12 if is_behind else data.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(data[:place] + broken + data[place:])
    np.testing.assert_array_equal(shown(path), COLOUR)


def test_read_picture__turns_a_png_whose_other_chunks_are_broken(tmp_path: Path) -> None:
    data = encoded("PNG")
    place = data.index(b"IDAT") - 4
    chunks = chunk(b"eXIf", exif(TURNED)) + chunk(b"tEXt", b"a\0b", checksum=5)
    path = tmp_path / "a.png"
    path.write_bytes(data[:place] + chunks + data[place:])
    np.testing.assert_array_equal(shown(path), np.rot90(COLOUR, 3))


def test_read_picture__still_finds_a_png_cut_off_behind_broken_chunks(tmp_path: Path) -> None:
    data = encoded("PNG")
    place = data.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes((data[:place] + chunk(b"tEXt", b"a\0b", checksum=5) + data[place:])[:900])
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        read_picture(path)


UNREADABLE = struct.pack("<HHII", 0x011A, 5, 1, 0xFFFFFF00)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("segments", "is_turned"),
    [
        (segment(0xE1, b"Exif\0\0" + exif(TURNED, UNREADABLE)), True),
        (segment(0xE1, b"Exif\0\0" + exif(TURNED, count=9, tail=b"")), True),
        (segment(0xE1, b"Exif\0\0Exif\0\0" + exif(TURNED)), True),
        (segment(0xE1, b"Exif\0\0" + exif(struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0))), False),
        (segment(0xE1, b"Exif\0\0" + exif(struct.pack("<HHI4s", 0x0112, 2, 4, b"top"))), False),
        (segment(0xE1, b"Exif\0\0garbage of no kind"), False),
        (segment(0xE1, b"Exif"), False),
        (segment(0xE2, b"MPF\0II*\0\xff\xff\xff\x7f"), False),
        (segment(0xE2, b"ICC_PROFILE\0\1\5nothing"), False),
        (segment(0xED, b"Photoshop 3.0\0008BIM\4"), False),
    ],
    ids=["bad-value", "cut", "marked-twice", "nine", "text", "garbage", "short", "views", "profile", "photoshop"],
)
def test_read_picture__survives_broken_jpeg_metadata(tmp_path: Path, segments: bytes, is_turned: bool) -> None:
    data = encoded("JPEG")
    (tmp_path / "plain.jpg").write_bytes(data)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + segments + data[2:])
    plain = shown(tmp_path / "plain.jpg")
    np.testing.assert_array_equal(shown(path), np.rot90(plain, 3) if is_turned else plain)


def test_exif_orientation__is_1_without_a_valid_tag() -> None:
    assert exif_orientation(exif(TURNED)) == 6
    assert exif_orientation(exif(UNREADABLE, TURNED)) == 6
    big = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 8, 0)
    assert exif_orientation(big) == 8
    for nothing in (b"", b"II", b"II*\0\xff\xff\xff\xff", exif(UNREADABLE), exif(TURNED)[:14]):
        assert exif_orientation(nothing) == 1


@pytest.mark.parametrize(("depth", "channels"), [(16, 3), (12, 3), (16, 4), (12, 4)])
def test_read_picture__scales_deep_colours_of_a_png_by_their_depth(tmp_path: Path, depth: int, channels: int) -> None:
    values = np.round(COLOUR / 255 * (2**depth - 1)).astype(np.uint16)
    values[0, 0] = 2**depth - 1
    stored = values[:, :, ::-1]
    if channels == 4:
        stored = np.dstack([stored, np.full((20, 30), 1000, np.uint16)])
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), stored)
    expected = COLOUR.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(shown(path), expected)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        verify_picture(path)
