from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vispeft.coco.problems import Findings
from vispeft.data.reading.folder_scan import find_pictures
from vispeft.errors import DataError


def picture(path: Path, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, kind)


def names(paths: tuple[Path, ...], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_find_pictures__goes_by_content(tmp_path: Path) -> None:
    kinds = {"a": "PNG", "b.jfif": "JPEG", "c.JPG": "JPEG", "d.gif": "GIF", "e.jp2": "JPEG2000", "f.old": "BMP"}
    for name, kind in {**kinds, "sub/g.ppm": "PPM", "h.tif~": "TIFF"}.items():
        picture(tmp_path / name, kind)
    (tmp_path / "damaged.png").write_bytes(b"nothing")
    for name in ("notes.txt", "scan.heic", "._c.JPG", "Thumbs.db", "empty"):
        (tmp_path / name).write_bytes(b"BM" if name == "notes.txt" else b"")
    scan = find_pictures(tmp_path)
    assert names(scan.pictures, tmp_path) == sorted([*kinds, "damaged.png", "h.tif~", "sub/g.ppm"])
    assert names(scan.ignored, tmp_path) == ["._c.JPG", "Thumbs.db", "empty", "notes.txt", "scan.heic"]


def test_find_pictures__follows_links_but_not_in_circles(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "images"
    folder.mkdir()
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(folder, folder / "circle")
    os.symlink(tmp_path / "gone.png", folder / "broken.png")
    scan = find_pictures(folder)
    assert names(scan.pictures, folder) == ["linked/a.png"]
    assert names(scan.ignored, folder) == ["broken.png"]


def test_find_pictures__passes_hidden_folders_and_skips_named_ones(tmp_path: Path) -> None:
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "out/b.png", "out/deep/c.png"):
        picture(tmp_path / name)
    scan = find_pictures(tmp_path, skip=[tmp_path / "out"])
    assert names(scan.pictures, tmp_path) == ["a.png"]
    assert names(scan.ignored, tmp_path) == [".ipynb_checkpoints", "__MACOSX"]
    assert names(find_pictures(tmp_path / "out", skip=[tmp_path / "out"]).pictures, tmp_path) == [
        "out/b.png",
        "out/deep/c.png",
    ]
    with pytest.raises(DataError, match="no folder"):
        find_pictures(tmp_path / "a.png")


def test_tell__names_what_has_no_other_purpose(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.heic", "c.heic"):
        (tmp_path / name).write_bytes(b"")
    findings = Findings()
    find_pictures(tmp_path).report_ignored(findings, expected=[".txt"])
    (problem,) = findings.problems()
    assert problem.subjects == ("b.heic", "c.heic")
