"""Picture files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vispeft.errors import DataError
from vispeft.io.pictures import write_picture


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("c/d.webp", "WEBP")])
def test_write_picture__takes_the_format_of_the_ending(tmp_path: Path, name: str, kind: str) -> None:
    write_picture(tmp_path / name, Image.new("RGB", (4, 3), (255, 0, 0)))
    with Image.open(tmp_path / name) as found:
        assert (found.format, found.size) == (kind, (4, 3))


@pytest.mark.parametrize("name", ["a", "a.txt", "a.psd"])
def test_write_picture__refuses_an_ending_that_is_no_pictures(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}` must have the ending of a picture, such as .png"):
        write_picture(tmp_path / name, Image.new("RGB", (4, 3)))
    assert not list(tmp_path.iterdir())


def test_write_picture__names_a_place_that_takes_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"a\.png` cannot be written: Is a directory"):
        write_picture(tmp_path / "a.png", Image.new("RGB", (4, 3)))
