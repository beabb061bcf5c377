from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vispeft.data import read_coco
from vispeft.data.converters import convert_yolo
from vispeft.errors import DataError

AddPictures = Callable[..., None]
Areas = Callable[[], dict[str, list[float]]]

LINE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"
AREA = 24.0 * 16.0


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir()
    return folder


def test_convert_yolo__reads_lines_and_names(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n\n")
    (tmp_path / "data.yaml").write_text("names: {0: cat, 1: dog}")
    convert_yolo(folder, labels, tmp_path / "out.json", names=tmp_path / "data.yaml")
    coco_set = read_coco(tmp_path / "out.json", folder)
    assert coco_set.report.problems == ()
    assert coco_set.class_names == ("cat", "dog")
    assert [len(group) for group in coco_set.annotations] == [1, 0]
    assert coco_set.annotations[0][0].bbox == (12, 8, 24, 16)
    assert coco_set.annotations[0][0].category_idx == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("0 0.5 0.5 0.1 0.1", "five numbers is a box"),
        ("0 0.5 0.5 0.1 0.1 0.9", "six numbers is a box with a score"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.9", "confidence"),
        ("0 a b c d e f", "numbers"),
        ("0 0,1 0,1 0,2 0,1 0,2 0,2", "decimal points"),
        ("5 0.1 0.1 0.2 0.1 0.2 0.2", "class 5"),
        ("-1 0.1 0.1 0.2 0.1 0.2 0.2", "class -1"),
        ("0.5 0.1 0.1 0.2 0.1 0.2 0.2", "class 0.5"),
        ("0 10 10 20 10 20 20", "0..1.*pixels"),
        ("0 nan 0.1 0.2 0.1 0.2 0.2", "three points"),
        ("0 0.1 0.1", "three points"),
    ],
)
def test_convert_yolo__names_the_line(folder: Path, tmp_path: Path, line: str, named: str) -> None:
    (tmp_path / "a.txt").write_text(f"0 0.1 0.1 0.2 0.1 0.2 0.2\n{line}\n")
    with pytest.raises(DataError, match=named) as caught:
        convert_yolo(folder, tmp_path, tmp_path / "out.json", names=["cat", "dog"])
    assert "a.txt, line 2" in str(caught.value)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINE.encode(),
        LINE.encode("utf-16"),
        LINE.replace(" ", "\t").replace("\n", "\r\n").encode(),
        LINE.replace(" ", ",").encode(),
        b"0.0 0.25,0.25 0.75,0.25 0.75,0.75 0.25,0.75",
    ],
    ids=["utf-8-mark", "utf-16", "windows-tabs", "commas", "float-class-pairs"],
)
def test_convert_yolo__reads_every_form_of_text(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures, areas: Areas, content: bytes
) -> None:
    add_pictures("a.jpg")
    (labels / "a.txt").write_bytes(content)
    assert convert_yolo(images, labels, out, names=["cat"]) == ()
    assert areas() == {"a.jpg": [AREA]}


def test_convert_yolo__reads_images_of_any_ending(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    names = ("a.jfif", "b.gif", "c.JPG", "d.jp2", "e.v1.png")
    add_pictures(*names)
    add_pictures("f", "g.2", format="PNG")
    for name in ("a", "b", "c", "d", "e.v1", "f", "g.2"):
        (labels / f"{name}.txt").write_text(LINE)
    assert convert_yolo(images, labels, out, names=["cat"]) == ()
    assert areas() == {name: [AREA] for name in (*names, "f", "g.2")}


def test_convert_yolo__reports_ignored_files(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg", "b.jpg", "c.jpg")
    (images / "scan.heic").write_bytes(b"something else")
    (images / "._a.jpg").write_bytes(b"attributes")
    (images / "d.jpg").write_bytes(b"damaged")
    for name in ("a", "d", "z", "classes"):
        (labels / f"{name}.txt").write_text(LINE)
    (labels / "b.txt").write_text("")
    problems = {p.kind: p for p in convert_yolo(images, labels, out, names=["cat"])}
    assert areas() == {"a.jpg": [AREA], "b.jpg": [], "c.jpg": []}
    assert {kind: problem.count for kind, problem in problems.items()} == {
        "no-image": 2,
        "unreadable-image": 1,
        "no-labels": 1,
        "no-image-of-labels": 1,
    }
    assert "c.jpg" in problems["no-labels"].message
    assert "z.txt" in problems["no-image-of-labels"].message


@pytest.mark.parametrize(
    ("picture", "label", "remedy"),
    [
        ("a.jpg", "labels/train/a.txt", "--labels .*labels/train"),
        ("a.jpg", "pictures/a.txt", "--labels .*pictures"),
        ("train/a.jpg", "labels/a.txt", "--images .*pictures/train"),
        ("a.jpg", "labels/b.txt", "contains b.txt"),
        ("a.jpg", "elsewhere/a.txt", "no .txt file"),
    ],
)
def test_convert_yolo__names_the_option_for_misplaced_label_files(
    tmp_path: Path,
    images: Path,
    labels: Path,
    out: Path,
    add_pictures: AddPictures,
    picture: str,
    label: str,
    remedy: str,
) -> None:
    add_pictures(picture)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text(LINE)
    with pytest.raises(DataError, match=f"no label file was found.*{remedy}"):
        convert_yolo(images, labels, out, names=["cat"])


def test_convert_yolo__refuses_labels_for_two_images(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures
) -> None:
    add_pictures("a.jpg", "a.png")
    (labels / "a.txt").write_text(LINE)
    with pytest.raises(DataError, match=r"a\.png and a\.jpg.*share"):
        convert_yolo(images, labels, out, names=["cat"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", b"cat\r\ndog\r\n"),
        ("data.yaml", b"\xef\xbb\xbfnames: [cat, dog]\nnc: 2"),
        ("data.yaml", b"names: {'1': dog, '0': cat}"),
        ("names.yml", b"- cat\n- dog\n"),
    ],
)
def test_convert_yolo__reads_names(
    tmp_path: Path, images: Path, labels: Path, out: Path, add_pictures: AddPictures, name: str, content: bytes
) -> None:
    add_pictures("a.jpg")
    (labels / "a.txt").write_text(LINE)
    (tmp_path / name).write_bytes(content)
    convert_yolo(images, labels, out, names=tmp_path / name)
    assert read_coco(out, images).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("nc: 2", "must contain `names`"),
        ("names: {1: cat, 2: dog}", "count from 0"),
        ("names: {a: cat}", "whole numbers"),
        ("names: [cat, cat]", "cat occurs twice"),
        ("names: [cat, '']", "one is empty"),
        ("names: []", "there is none"),
        ("names: [cat]\nnc: 3", "`nc` is 3"),
        ("names: [cat]\nkpt_shape: [3, 2]", "key points"),
        ("names: [cat", "YAML"),
    ],
)
def test_convert_yolo__refuses_names(
    tmp_path: Path, images: Path, labels: Path, out: Path, content: str, named: str
) -> None:
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=named):
        convert_yolo(images, labels, out, names=tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data.yaml", "nc: 3\nnames: [no, 007, 1.50]\n", ("no", "007", "1.50")),
        ("data.yaml", "names:\n  0: on\n  1: null\n", ("on", "null")),
        ("obj.names", "cat\ndog\n", ("cat", "dog")),
        ("classes.txt", "1 cat\ndog\n", ("1 cat", "dog")),
    ],
)
def test_convert_yolo__takes_names_as_they_are_written(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures, file: str, text: str, names: tuple[str, ...]
) -> None:
    add_pictures("a.jpg")
    (labels / "a.txt").write_text(LINE)
    (labels.parent / file).write_text(text)
    convert_yolo(images, labels, out, names=labels.parent / file)
    assert read_coco(out, images).class_names == names


@pytest.mark.parametrize("text", ["0 cat\n1 dog\n", "1: cat\n2: dog\n", "0,cat\n1,dog\n"])
def test_convert_yolo__refuses_names_with_their_numbers(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures, text: str
) -> None:
    add_pictures("a.jpg")
    (labels / "a.txt").write_text(LINE)
    (labels.parent / "classes.txt").write_text(text)
    with pytest.raises(DataError, match="begin with numbers"):
        convert_yolo(images, labels, out, names=labels.parent / "classes.txt")


def test_convert_yolo__refuses_labels_of_another_letter_case(
    images: Path, labels: Path, out: Path, add_pictures: AddPictures
) -> None:
    add_pictures("a.jpg", "B.jpg")
    for name in ("a.txt", "b.txt"):
        (labels / name).write_text(LINE)
    with pytest.raises(DataError, match=r"B\.jpg \(b\.txt\): .*letter case"):
        convert_yolo(images, labels, out, names=["cat"])
