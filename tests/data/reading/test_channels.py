"""Images of any number of channels are read as they are stored, whatever the layout of the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vispeft.data.reading.channels import read_for_display, read_image, shown, verify_image
from vispeft.errors import DataError

RNG = np.random.default_rng(0)


def write_tiff(path: Path, values: NDArray[Any], *, planar: bool = False, predictor: int = 1) -> None:
    """Write [h, w, C] as an uncompressed or horizontally differenced, deflated TIFF of undeclared bands, two strips."""
    import zlib

    height, width, bands = values.shape
    rows = -(-height // 2)
    planes = [values[:, :, i : i + 1] for i in range(bands)] if planar else [values]
    chunks = []
    for plane in planes:
        for part in (plane[:rows], plane[rows:]):
            if predictor == 2:
                part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
            data = part.astype(values.dtype.newbyteorder("<")).tobytes()
            chunks.append(zlib.compress(data) if predictor == 2 else data)
    kind = 3 if values.dtype.kind == "f" else 1
    body, offsets = b"", []
    for chunk in chunks:
        offsets.append(8 + len(body))
        body += chunk
    tags: list[tuple[int, tuple[int, ...]]] = [
        (256, (width,)),
        (257, (height,)),
        (258, (values.dtype.itemsize * 8,) * bands),
        (259, (8 if predictor == 2 else 1,)),
        (262, (1,)),
        (273, tuple(offsets)),
        (277, (bands,)),
        (278, (rows,)),
        (279, tuple(map(len, chunks))),
        (284, (2 if planar else 1,)),
        (317, (predictor,)),
        (339, (kind,) * bands),
    ]
    start = 8 + len(body)
    extra_at, entries, extra = start + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        field = packed if len(packed) <= 4 else struct.pack("<I", extra_at + len(extra))
        extra += b"" if len(packed) <= 4 else packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + field
    directory = struct.pack("<H", len(tags)) + entries + bytes(4) + extra
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + body + directory)


@pytest.mark.parametrize("bands", [2, 4, 5, 12])
@pytest.mark.parametrize(
    ("dtype", "scale"), [("uint8", 1.0), ("uint16", 255 / 65535), ("float32", 255.0)], ids=["8", "16", "float"]
)
@pytest.mark.parametrize(
    "layout", [{"planar": True}, {"planar": False}, {"predictor": 2}], ids=["planar", "chunky", "diff"]
)
def test_read_image__reads_bands_of_a_tiff(
    bands: int, dtype: str, scale: float, layout: dict[str, Any], tmp_path: Path
) -> None:
    if dtype == "float32" and "predictor" in layout:
        pytest.skip("differences of floating-point numbers have another predictor")
    values = (RNG.random((13, 10, bands)) * (1 if dtype == "float32" else 60000)).astype(dtype)
    write_tiff(tmp_path / "a.tif", values, **layout)
    pixels = read_image(tmp_path / "a.tif", bands).pixels
    assert pixels.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_allclose(pixels, values * np.float32(scale), rtol=1e-6)
    header = verify_image(tmp_path / "a.tif", bands)
    assert (header.height, header.width) == (13, 10)
    with pytest.raises(DataError, match=rf"a\.tif must have 7 channels .* but has {bands}"):
        read_image(tmp_path / "a.tif", 7)
    assert read_for_display(tmp_path / "a.tif").shape == (13, 10, 3)


def test_read_image__reads_pages_of_a_stack(tmp_path: Path) -> None:
    planes = [(RNG.random((13, 10)) * 60000).astype(np.uint16) for _ in range(5)]
    pages = [Image.fromarray(plane) for plane in planes]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pixels = read_image(tmp_path / "a.tif", 5).pixels
    np.testing.assert_allclose(pixels, np.stack(planes, 2) * np.float32(255 / 65535), rtol=1e-6)
    assert read_image(tmp_path / "a.tif", 1).pixels.shape == (13, 10, 1)
    with pytest.raises(DataError, match=r"must have 4 channels .* but has 1 and 5 pages"):
        read_image(tmp_path / "a.tif", 4)


def test_read_image__does_not_guess_colours(tmp_path: Path) -> None:
    values = (RNG.random((13, 10, 3)) * 60000).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", values)
    with pytest.raises(DataError, match="not declared as red, green and blue"):
        read_image(tmp_path / "a.tif", 3)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_allclose(read_image(tmp_path / "a.npy", 3).pixels, values * np.float32(255 / 65535), rtol=1e-6)


def test_read_image__reads_arrays(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (13, 10, 4), np.uint8)
    for name, stored in (("last", values), ("first", values.transpose(2, 0, 1))):
        np.save(tmp_path / f"{name}.npy", stored)
        assert (read_image(tmp_path / f"{name}.npy", 4).pixels == values).all()
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(DataError, match=r"must be an array \[h, w\]"):
        read_image(tmp_path / "text.npy", 1)
    np.save(tmp_path / "signed.npy", values[:, :, 0].astype(np.int16))
    with pytest.raises(DataError, match="but holds int16"):
        read_image(tmp_path / "signed.npy", 1)


def test_read_image__reads_usual_files_as_grey_and_with_alpha(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (13, 10, 4), np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 4).pixels == values).all()
    Image.fromarray(values[:, :, :3]).save(tmp_path / "rgb.png")
    grey = np.asarray(Image.fromarray(values[:, :, :3]).convert("L"))
    assert np.abs(read_image(tmp_path / "rgb.png", 1).pixels[:, :, 0].astype(int) - grey).max() <= 1
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png", 1).pixels[:, :, 0] == grey).all()
    with pytest.raises(DataError, match=r"must have 4 channels .* but has 3"):
        read_image(tmp_path / "rgb.png", 4)
    deep = (RNG.random((13, 10)) * 60000).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    np.testing.assert_allclose(read_image(tmp_path / "deep.png", 1).pixels[:, :, 0], deep * (255 / 65535), rtol=1e-5)


def test_shown__takes_the_first_three_channels_or_grey() -> None:
    values = RNG.integers(0, 255, (13, 10, 5), np.uint8)
    assert (shown(values) == values[:, :, :3]).all()
    assert (shown(values[:, :, :1]) == values[:, :, :1]).all()
    deep = shown(values.astype(np.float32) / 50)
    assert deep.dtype == np.uint8
    assert deep.max() == 255
