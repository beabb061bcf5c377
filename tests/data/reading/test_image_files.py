"""Image files that are links, that are elsewhere, or that are no images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.data import EvalTransform, InstanceDataset, read_coco
from vispeft.data.reading import image_files
from vispeft.data.reading.check import check_dataset, write_fixed
from vispeft.data.reading.folder_scan import inner_path, is_sidecar, names_in
from vispeft.errors import DataError


def named(document: dict[str, Any], *names: str) -> dict[str, Any]:
    for entry, name in zip(document["images"], names, strict=True):
        entry["file_name"] = name
    return document


def store(folder: Path) -> Path:
    """The images in a folder of their own, and links to them in their place, as data versioning tools do."""
    hidden = folder.parent / "store"
    hidden.mkdir()
    for path in list(folder.iterdir()):
        path.rename(hidden / f"{path.name}.blob")
        path.symlink_to(Path("..") / "store" / f"{path.name}.blob")
    return hidden


def test_read_coco__follows_links_to_files(write: Any, folder: Path, document: dict[str, Any]) -> None:
    wanted = InstanceDataset(read_coco(write(document), folder), EvalTransform(64))[0].image
    store(folder)
    coco_set = read_coco(write(document), folder)
    assert coco_set.report.problems == ()
    assert (InstanceDataset(coco_set, EvalTransform(64))[0].image == wanted).all()


def test_read_coco__follows_links_to_folders(write: Any, folder: Path, document: dict[str, Any]) -> None:
    folder.rename(folder.parent / "store")
    folder.mkdir()
    (folder / "day1").symlink_to("../store")
    assert len(read_coco(write(named(document, "day1/a.png", "day1/b.png")), folder)) == 2
    out = folder.parent / "fixed.json"
    write_fixed(write(named(document, "day1/A.png", "day1\\b.png")), folder, out)
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["day1/a.png", "day1/b.png"]


def test_read_coco__a_link_does_not_open_the_folder_above_its_target(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    inner = folder.parent / "store" / "inner"
    inner.mkdir(parents=True)
    (folder / "b.png").rename(inner.parent / "b.png")
    (folder / "link").symlink_to(inner)
    assert (folder / "link" / ".." / "b.png").exists()
    coco_set = read_coco(write(named(document, "link/../a.png", "link/../b.png")), folder)
    assert [image.file_name for image in coco_set.images] == ["link/../a.png"]
    assert len(InstanceDataset(coco_set, EvalTransform(64))) == 1


@pytest.mark.parametrize(("target", "word"), [("../store/b.png", "a link to ../store/b.png"), ("b.png", "in a circle")])
def test_check_dataset__tells_broken_links(
    write: Any, folder: Path, document: dict[str, Any], target: str, word: str
) -> None:
    (folder / "day1").mkdir()
    (folder / "b.png").rename(folder / "day1" / "b.png")
    (folder / "b.png").symlink_to(target)
    (problem,) = check_dataset(write(document), folder).problems
    assert problem.kind == "broken-link"
    assert word in problem.message
    write_fixed(write(document), folder, out := folder.parent / "fixed.json")
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.png"]


def test_check_dataset__tells_a_broken_link_to_a_folder(write: Any, folder: Path, document: dict[str, Any]) -> None:
    (folder / "day2").symlink_to("../store")
    (problem,) = check_dataset(write(named(document, "a.png", "day2/b.png")), folder).problems
    assert (problem.kind, "day2/b.png (a link to ../store)" in problem.message) == ("broken-link", True)


def test_check_dataset__names_the_near_files_and_fix_takes_them(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    path = write(named(document, "A.PNG", "images\\b.png"))
    report = check_dataset(path, folder)
    assert [problem.kind for problem in report.refusals] == ["no-usable-image"]
    assert "letter case" in report.refusals[0].message
    text = " ".join(problem.message for problem in report.warnings)
    assert "`A.PNG` (missing, but `a.png` is there) [2 annotations]" in text
    assert "`images\\b.png` (missing, but `b.png` is there)" in text
    assert report.is_fixable
    out = folder.parent / "fixed.json"
    assert {problem.kind for problem in write_fixed(path, folder, out).problems} == {"near-image"}
    assert check_dataset(out, folder).problems == ()
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.png", "b.png"]


@pytest.mark.parametrize("name", ["{folder}/b.png", "/elsewhere/images/b.png", "../../x/images/b.png", "/b.png"])
def test_write_fixed__brings_names_back_into_the_folder(
    write: Any, folder: Path, document: dict[str, Any], name: str
) -> None:
    path = write(named(document, "a.png", name.format(folder=folder)))
    report = check_dataset(path, folder)
    assert [problem.kind for problem in report.refusals] == ["path-outside"]
    assert "`b.png` is there" in report.refusals[0].message
    out = folder.parent / "fixed.json"
    write_fixed(path, folder, out)
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.png", "b.png"]


def test_write_fixed__does_not_replace_a_file_outside_by_one_of_its_name(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    (folder.parent / "b.png").write_bytes((folder / "a.png").read_bytes())
    for name in ("../b.png", str(folder.parent / "b.png")):
        out = folder.parent / "fixed.json"
        write_fixed(write(named(document, "a.png", name)), folder, out)
        assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.png"]


def test_write_fixed__never_gives_two_entries_one_file(write: Any, folder: Path, document: dict[str, Any]) -> None:
    out = folder.parent / "fixed.json"
    write_fixed(write(named(document, "a.png", "/elsewhere/a.png")), folder, out)
    assert [image["id"] for image in json.loads(out.read_text())["images"]] == [1]


def test_write_fixed__sizes_of_near_files_are_compared(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["images"][1] |= {"height": 48, "width": 32}
    out = folder.parent / "fixed.json"
    report = write_fixed(write(named(document, "A.png", "B.png")), folder, out)
    assert {problem.kind for problem in report.warnings} == {"near-image", "image-size"}
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.png"]


@pytest.mark.parametrize(
    ("names", "files", "reason"),
    [
        (("1.png", "2.png"), (), "the folder holds no files"),
        (("1.png", "2.png"), ("notes.txt",), "the folder holds no images, but 1 other files, such as `notes.txt`"),
        (("1.png", "2.png"), ("x.png",), "the 1 images there, such as `x.png`, have quite other names"),
        (("a.png", "b.png"), (), "`{images}` has files of these names (give it as the image folder)"),
    ],
)
def test_check_dataset__says_why_no_image_is_there(
    write: Any, folder: Path, document: dict[str, Any], names: tuple[str, str], files: tuple[str, ...], reason: str
) -> None:
    given = folder.parent / "given"
    given.mkdir()
    for file in files:
        (given / file).touch()
    report = check_dataset(write(named(document, *names)), given)
    assert f"none of the 2 images is in {given}: {reason.format(images=folder)}." in report.refusals[0].message
    assert not report.is_fixable


def test_check_dataset__a_folder_beside_comes_before_a_file_far_above(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    given = folder.parent / "inner" / "images"
    given.mkdir(parents=True)
    beside = folder.rename(given.parent / "beside")
    path = write(named(document, "a.png", "b.png"))
    (folder.parent / "a.png").touch()
    message = check_dataset(path, given).refusals[0].message
    assert message.endswith(f"`{beside}` has files of these names (give it as the image folder).")


def test_check_dataset__a_single_file_far_above_is_another_one(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    given = folder / "1" / "2" / "3" / "4"
    given.mkdir(parents=True)
    message = check_dataset(write(named(document, "a.png", "b.png")), given).refusals[0].message
    assert message.endswith("the folder holds no files.")


def test_check_dataset__names_a_folder_in_other_letter_case(write: Any, folder: Path, document: dict[str, Any]) -> None:
    folder.rename(folder.with_name("Images"))
    if folder.exists():
        pytest.skip("the file system does not tell letter case apart")
    with pytest.raises(DataError, match=r"does not exist, but `.*Images` does"):
        read_coco(write(document), folder)


@pytest.mark.parametrize("is_there", [True, False])
def test_check_dataset__tells_files_of_macos(
    write: Any, folder: Path, document: dict[str, Any], is_there: bool
) -> None:
    if is_there:
        (folder / "._b.png").write_bytes(b"\0\5\x16\7")
    (problem,) = check_dataset(write(named(document, "a.png", "._b.png")), folder).problems
    assert (problem.severity, problem.kind) == ("warn", "sidecar-file")
    assert "macOS" in problem.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_check_dataset__looks_at_the_ends_of_many_images(
    write: Any, folder: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(image_files, "DECODED_AT_MOST", 1)
    noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "a.png", kind)
    whole = (folder / "a.png").read_bytes()
    # such as the thumbnails and videos that cameras append
    (folder / "a.png").write_bytes(whole + bytes(100_000))
    assert check_dataset(write(document), folder).problems == ()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    (problem,) = check_dataset(write(document), folder).problems
    assert (problem.kind, "a.png" in problem.message) == ("unreadable-image", True)


def test_check_dataset__tells_pointers_from_images(write: Any, folder: Path, document: dict[str, Any]) -> None:
    (folder / "b.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (problem,) = check_dataset(write(document), folder).problems
    assert problem.kind == "pointer-file"
    assert "git lfs pull" in problem.message


def test_names_in__follows_links_and_ends(folder: Path) -> None:
    (folder / "day1").mkdir()
    (folder / "day1" / "c.png").touch()
    (folder / "day1" / "all").symlink_to(folder)
    (folder / "linked").symlink_to(folder.parent / "other")
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "d.png").touch()
    (folder / "gone.png").symlink_to("nowhere")
    for name in ("._a.png", "Thumbs.db", ".DS_Store"):
        (folder / name).touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "e.png").touch()
    assert names_in(folder) == ["a.png", "b.png", "day1/c.png", "linked/d.png"]


@pytest.mark.parametrize("name", ["._a.jpg", "x/._a.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"])
def test_is_sidecar__files_of_macos_and_windows(name: str) -> None:
    assert is_sidecar(Path(name))
    assert not is_sidecar(Path("x/a.jpg"))


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("a.png", "a.png"),
        ("./x//a.png", "x/a.png"),
        ("x/../a.png", "a.png"),
        ("../images/a.png", "a.png"),
        ("..a.png", "..a.png"),
        ("../a.png", None),
        ("../images2/a.png", None),
        ("/a.png", None),
        ("\\\\server\\a.png", None),
        ("D:\\a.png", None),
    ],
)
def test_inner_path__stays_inside(tmp_path: Path, name: str, inner: str | None) -> None:
    folder = tmp_path / "images"
    assert inner_path(folder, name) == (None if inner is None else folder / inner)
    assert inner_path(Path("images"), name) == (None if inner is None else Path("images") / inner)
