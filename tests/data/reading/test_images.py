from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.data.reading import images
from vispeft.data.reading.images import read_header, read_picture, verify_picture
from vispeft.errors import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
GREY = COLOUR[:, :, 0]


def saved(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_read_picture__keeps_rgb_as_it_is(tmp_path: Path) -> None:
    picture = read_picture(saved(tmp_path / "a.png", COLOUR))
    np.testing.assert_array_equal(picture.pixels, COLOUR)
    assert picture.reduction == 1


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr"])
def test_read_picture__gives_rgb_of_every_mode(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    path = saved(tmp_path / f"a.{suffix}", COLOUR, mode)
    expected = np.asarray(Image.fromarray(COLOUR).convert(mode).convert("RGB"))
    pixels = read_picture(path).pixels
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("full_scale", "dtype"), [(65535, np.uint16), (4095, np.uint16), (255, np.uint16)])
def test_read_picture__scales_deep_greys_by_their_depth(tmp_path: Path, full_scale: int, dtype: type) -> None:
    ramp = np.round(np.linspace(0, full_scale, 600)).astype(dtype).reshape(20, 30)
    pixels = read_picture(saved(tmp_path / "a.png", ramp)).pixels
    expected = ramp.astype(float) * 255 / full_scale
    assert np.abs(pixels[:, :, 1] - expected).max() <= 0.5 + 1e-6
    assert (pixels == pixels[:, :, :1]).all()


def test_read_picture__scales_floats_and_survives_nan(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    values[0, 0] = np.nan
    pixels = read_picture(saved(tmp_path / "a.tif", values)).pixels
    assert pixels.max() == 255
    assert pixels[0, 0, 0] == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_read_picture__applies_exif_as_the_header_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:8, :20] = 255
    path = saved(tmp_path / f"a.{suffix}", pixels, exif=exif)
    header, shown = read_header(path), read_picture(path).pixels
    assert shown.shape[:2] == (header.height, header.width) == ((40, 16) if orientation in (6, 8) else (16, 40))
    bright = np.argwhere(shown[:, :, 0] > 128).mean(0) / shown.shape[:2]
    corner = {1: (0, 0), 3: (1, 1), 6: (0, 1), 8: (1, 0)}[orientation]
    assert (np.round(bright) == corner).all()


def test_read_picture__reduces_a_jpeg_no_further_than_asked(tmp_path: Path) -> None:
    smooth = np.zeros((400, 600, 3), np.uint8)
    smooth[:, 300:] = 200
    path = saved(tmp_path / "a.jpg", smooth)
    for long_side, reduction in ((600, 1), (301, 1), (300, 2), (150, 4), (1, 8)):
        picture = read_picture(path, long_side=long_side)
        assert picture.reduction == reduction
        assert picture.pixels.shape[:2] == (400 // reduction, 600 // reduction)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_verify_picture__finds_a_file_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    verify_picture(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match=f"a.{suffix}"):
        verify_picture(path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_read_picture__names_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_picture, read_header, verify_picture):
        with pytest.raises(DataError, match=r"a\.jpg"):
            read(path)
    with pytest.raises(DataError, match="does not exist"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match=tmp_path.name):
        read_picture(tmp_path)


def test_read_picture__refuses_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", COLOUR)
    monkeypatch.setattr(images, "LARGEST_IMAGE", 599)
    with pytest.raises(DataError, match="30x20"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_read_picture__gives_pixels_or_one_clear_error_on_damaged_bytes(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", COLOUR)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    messages, read = [], 0
    for _ in range(60):
        damaged = whole.copy()
        places = rng.integers(0, min(len(whole), 200), 4)
        damaged[places] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            read += read_picture(path, long_side=8).pixels.ndim == 3
        except DataError as error:
            messages.append(str(error))
    assert read + len(messages) == 60
    assert messages
    assert all(f"a.{suffix}" in message and "\n" not in message for message in messages)
