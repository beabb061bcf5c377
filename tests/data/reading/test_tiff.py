from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.data.reading.images import read_header, read_picture, read_stored, verify_picture
from vispeft.errors import DataError

Array = np.ndarray[Any, Any]

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
SHARES = np.random.default_rng(0).random((6, 9, 5))
SHARES[0, 0] = 1


def write_tiff(
    path: Path,
    pixels: Array,
    photometric: int,
    *,
    extra: tuple[int, ...] = (),
    is_planar: bool = False,
    orientation: int = 1,
    order: str = "<",
) -> Path:
    """Writes an uncompressed TIFF. pixels: [h, w] or [h, w, n]"""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, bands = pixels.shape
    planes = [pixels[:, :, idx] for idx in range(bands)] if is_planar else [pixels]
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    offsets = np.cumsum([8] + [len(strip) for strip in strips])
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [pixels.dtype.itemsize * 8] * bands),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", offsets[:-1].tolist()),
        274: ("H", [orientation]),
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if is_planar else 1]),
        339: ("H", [kind] * bands),
    }
    if extra:
        tags[338] = ("H", list(extra))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", int(offsets[-1]))
    path.write_bytes(head + b"".join(strips) + directory(tags, int(offsets[-1]), order))
    return path


def directory(tags: dict[int, tuple[str, list[int]]], start: int, order: str) -> bytes:
    entries, values = struct.pack(order + "H", len(tags)), b""
    for tag, (code, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > 4:
            place = start + 6 + 12 * len(tags) + len(values)
            values, packed = values + packed, struct.pack(order + "I", place)
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[code], len(numbers)) + packed.ljust(4, b"\0")
    return entries + bytes(4) + values


def deep(dtype: str, bands: int) -> Array:
    """The shares in another type: whole numbers of 16 bits at most, since deeper ones are scaled by their range."""
    scale = 1 if np.dtype(dtype).kind == "f" else min(np.iinfo(dtype).max, 65535)
    return (SHARES[:, :, :bands] * scale).astype(dtype)


def shown(path: Path) -> Array:
    """The pixels, after all readers agree on their size."""
    pixels = read_picture(path).pixels
    for header in (read_header(path), verify_picture(path)):
        assert pixels.shape == (header.height, header.width, 3)
    return pixels


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("is_planar", [False, True], ids=["interleaved", "planes"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float16", "float32", "float64", "uint64"])
@pytest.mark.parametrize(("bands", "extra"), [(3, ()), (4, (0,)), (4, (2,)), (4, ())])
def test_read_picture__reads_rgb_of_every_depth(
    tmp_path: Path, bands: int, extra: tuple[int, ...], dtype: str, is_planar: bool, order: str
) -> None:
    pixels = deep(dtype, bands)
    path = write_tiff(tmp_path / "a.tif", pixels, RGB, extra=extra, is_planar=is_planar, order=order)
    assert np.abs(shown(path) - SHARES[:, :, :3] * 255).max() <= 1.01


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_picture__turns_every_depth_alike(tmp_path: Path, orientation: int, bands: int, dtype: str) -> None:
    photometric = BLACK_IS_ZERO if bands == 1 else RGB
    path = write_tiff(
        tmp_path / "a.tif", deep(dtype, bands), photometric, extra=(0,) * (bands == 4), orientation=orientation
    )
    pixels = SHARES[:, :, :3] if bands > 1 else np.repeat(SHARES[:, :, :1], 3, 2)
    expected = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert np.abs(shown(path) - expected * 255).max() <= 1.01


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_read_picture__inverts_where_zero_is_white(tmp_path: Path, dtype: str) -> None:
    path = write_tiff(tmp_path / "a.tif", deep(dtype, 1), WHITE_IS_ZERO)
    assert np.abs(shown(path)[:, :, 0] - (255 - SHARES[:, :, 0] * 255)).max() <= 1.01


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_read_picture__undoes_an_alpha_that_was_multiplied_in(tmp_path: Path, dtype: str) -> None:
    shares = np.dstack([SHARES[:, :, :3] * 0.5, np.full((6, 9), 0.5)])
    shares[0, 0] = (1, 1, 1, 1)
    scale = 1 if dtype == "float32" else np.iinfo(dtype).max
    path = write_tiff(tmp_path / "a.tif", (shares * scale).astype(dtype), RGB, extra=(1,))
    assert np.abs(shown(path) - SHARES[:, :, :3] * 255).max() <= 4


@pytest.mark.parametrize("is_planar", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [2, 3, 4, 5])
def test_read_picture__refuses_bands_without_colours(tmp_path: Path, bands: int, dtype: str, is_planar: bool) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, deep(dtype, bands), BLACK_IS_ZERO, extra=(0,) * (bands - 1), is_planar=is_planar)
    for read in (read_picture, read_header, verify_picture):
        with pytest.raises(DataError, match=rf"a\.tif holds {bands} bands.*not declared.*save"):
            read(path)


def test_read_picture__reads_the_first_three_of_five_bands_that_are_declared(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", deep("uint8", 5), RGB, extra=(0, 0))
    assert np.abs(shown(path) - SHARES[:, :, :3] * 255).max() <= 1.01
    write_tiff(path, deep("uint16", 5), RGB, extra=(0, 0), is_planar=True)
    assert np.abs(shown(path) - SHARES[:, :, :3] * 255).max() <= 1.01
    write_tiff(path, deep("uint16", 5), RGB, extra=(0, 0))
    with pytest.raises(DataError, match="5 bands of 16 bits, which are not read"):
        read_picture(path)


def test_read_picture__keeps_negative_values_in_order(tmp_path: Path) -> None:
    ramp = np.linspace(-1000, 1000, 54).reshape(6, 9).astype(np.int16)
    pixels = shown(write_tiff(tmp_path / "a.tif", ramp, BLACK_IS_ZERO))[:, :, 0]
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (np.diff(pixels.reshape(-1).astype(int)) >= 0).all()


def test_read_picture__takes_an_overshoot_beyond_one_for_white(tmp_path: Path) -> None:
    values = np.array([[0, 0.5, 1, 1.1]], np.float32)
    assert shown(write_tiff(tmp_path / "a.tif", values, BLACK_IS_ZERO))[0, :, 0].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 3])
def test_verify_picture__finds_a_deep_file_that_is_cut_off(tmp_path: Path, bands: int, dtype: str) -> None:
    path = write_tiff(tmp_path / "a.tif", deep(dtype, bands), RGB if bands == 3 else BLACK_IS_ZERO)
    data = path.read_bytes()
    # the strip is said to be longer than the file
    size = struct.pack("<I", deep(dtype, bands).nbytes)
    path.write_bytes(data.replace(struct.pack("<HHI", 279, 4, 1) + size, struct.pack("<HHII", 279, 4, 1, 10**6)))
    with pytest.raises(DataError, match=r"a\.tif is cut off"):
        verify_picture(path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_read_stored__gives_numbers_as_they_are(tmp_path: Path, compression: str) -> None:
    values = (SHARES[:, :, 0] * 60000).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.tif").values, values)
    write_tiff(tmp_path / "b.tif", values.astype(np.int64) * 10**6, BLACK_IS_ZERO)
    np.testing.assert_array_equal(read_stored(tmp_path / "b.tif").values, values.astype(np.int64) * 10**6)
