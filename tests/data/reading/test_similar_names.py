"""Names that are near to files, without a disk."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from vispeft.data.reading.similar_names import find_similar

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Grün é.png") for form in ("NFC", "NFD"))

# case: the name, the files, the one that is taken, and a word of the cause
TAKEN: dict[str, tuple[str, list[str], str, str]] = {
    "case of the ending": ("a.JPG", ["a.jpg", "b.jpg"], "a.jpg", "letter case"),
    "case of a folder": ("day1/a.png", ["Day1/A.png"], "Day1/A.png", "letter case"),
    "composed": (COMPOSED, [DECOMPOSED], DECOMPOSED, "Unicode form"),
    "decomposed": (DECOMPOSED, [COMPOSED], COMPOSED, "Unicode form"),
    "no-break space": ("Shot PM.png", ["Shot\u202fPM.png"], "Shot\u202fPM.png", "Unicode form"),
    "Windows separators": ("day1\\0.png", ["day1/0.png"], "day1/0.png", "have Windows separators"),
    "Windows separators in the file": ("day1/0.png", ["day1\\0.png"], "day1\\0.png", "lack Windows separators"),
    "percent escapes": ("part%200.png", ["part 0.png"], "part 0.png", "have percent escapes"),
    "percent escapes in the file": ("part 0.png", ["part%200.png"], "part%200.png", "lack percent escapes"),
    "escaped twice": ("part%25200.png", ["part 0.png"], "part 0.png", "percent escapes"),
    "spaces at the ends": (" a.png\n", ["a.png"], "a.png", "spaces"),
    "the folder itself": ("images/a.png", ["a.png"], "a.png", "(give `/data/set` as the image folder)"),
    "the end of its path": ("set/images/a.png", ["a.png"], "a.png", "(give `/data` as the image folder)"),
    "its whole path": ("/data/set/images/a.png", ["a.png"], "a.png", "the image folder itself"),
    "of another machine": (
        "/home/x/images/day1/a.png",
        ["day1/a.png", "day2/a.png"],
        "day1/a.png",
        "begin with folders",
    ),
    "of Windows": ("C:\\x\\a.png", ["a.png"], "a.png", "begin with folders"),
    "file URL": ("file:///home/x/a%20b.png", ["a b.png"], "a b.png", "(URL) and have percent escapes"),
    "web URL": ("https://host/bucket/a.png?sign=1", ["a.png"], "a.png", "(URL)"),
    "local files of Label Studio": ("/data/local-files/?d=images%5Ca.png", ["a.png"], "a.png", "(URL)"),
    "upload to Label Studio": ("/data/upload/1/1a2b3c4d-a.png", ["1a2b3c4d-a.png"], "1a2b3c4d-a.png", "folders"),
    "before the upload": ("images/1a2b3c4d-my_a.png", ["my a.png"], "my a.png", "Label Studio"),
    "UTF-8 read as Windows'": ("Ã¼1.png", ["ü1.png"], "ü1.png", "another encoding"),
    "UTF-8 read as an archive's": ("ü1.png", ["├╝1.png"], "├╝1.png", "another encoding"),
    "HTML escapes": ("a &amp; b&#39;s.png", ["a & b's.png"], "a & b's.png", "have HTML escapes"),
    "folders dropped": ("a.png", ["day1/a.png", "day1/b.png"], "day1/a.png", "`/data/set/images/day1`"),
    "ending of the same format": ("a.jpeg", ["a.jpg"], "a.jpg", "of the same format"),
    "the nearest of two": ("images/A.png", ["a.png", "A.png"], "A.png", "the image folder itself"),
    "several differences": ("images\\1a2b3c4d-Part%200.JPEG", ["part 0.jpg"], "part 0.jpg", "letter case"),
}

# case: names, files, and a word of the cause, where nothing is taken for the last name
NOT_TAKEN: dict[str, tuple[list[str], list[str], str]] = {
    "two like files": (["A.PNG"], ["a.png", "A.png"], "several files"),
    "two folders": (["a.png"], ["day1/a.png", "day2/a.png"], "several files"),
    "two names of one file": (["A.png", "a.PNG"], ["a.png"], "several of them"),
    "two uploads of one file": (["1a2b3c4d-a.png", "2a2b3c4d-a.png"], ["a.png"], "several of them"),
    "other folder": (["day1/a.png"], ["day2/a.png"], "other folders"),
    "other format": (["a.jpg"], ["a.png"], "another format"),
    "without an ending": (["a"], ["a.png"], "another format"),
    "an ending twice": (["a.png"], ["a.png.png"], "too few or too many"),
    "size behind the ending, of VIA": (["a.png12340"], ["a.png"], "too few or too many"),
    "before an export of Roboflow": (["a.jpg"], ["a_jpg.rf.0a1b2c3d4e5f0a1b2c3d4e5f0a1b2c3d.jpg"], "Roboflow"),
    "an export of Roboflow": (["a-b_png.rf.AbC1b2c3d4e5f0a1b2c3.jpg"], ["a-b.png"], "Roboflow"),
    "a mask below": (["a.png", "b.png"], ["images/a.png", "masks/a.png", "masks/b.png"], "lack the folders"),
}

FAR: dict[str, tuple[str, list[str]]] = {
    "other name": ("a.png", ["b.png"]),
    "a date before it": ("20230501-a.png", ["a.png"]),
    "another upload": ("1a2b3c4d-a.png", ["2a2b3c4d-a.png"]),
    "a question mark": ("who?d=a.png", ["a.png"]),
    "no image": ("a.png", ["a.txt", "a.json"]),
    "attributes of macOS": ("._a.png", ["a.png"]),
}
FOLDER = Path("/data/set/images")


@pytest.mark.parametrize("case", TAKEN)
def test_find_near__takes_the_file_that_is_meant(case: str) -> None:
    name, files, file, word = TAKEN[case]
    near = find_similar(FOLDER, files, [name], [])[name]
    assert near.file == file
    assert near.hint == f"`{file}` is there".replace("\u202f", "?")
    assert near.cause.startswith("the names ")
    assert word in near.cause


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_find_near__does_not_guess(case: str) -> None:
    names, files, word = NOT_TAKEN[case]
    near = find_similar(FOLDER, files, names, [])[names[-1]]
    assert near.file == ""
    assert word in near.cause


@pytest.mark.parametrize("case", FAR)
def test_find_near__tells_near_from_far(case: str) -> None:
    name, files = FAR[case]
    assert find_similar(FOLDER, files, [name], []) == {}


def test_find_near__leaves_a_listed_file_alone() -> None:
    near = find_similar(FOLDER, ["a.png", "b.png"], ["A.png", "B.png"], ["a.png"])
    assert (near["A.png"].file, near["B.png"].file) == ("", "b.png")
    assert "listed already" in near["A.png"].cause


def test_find_near__knows_a_file_that_was_opened_in_other_letter_case() -> None:
    near = find_similar(FOLDER, ["a.png"], ["images/a.png"], ["A.PNG"])
    assert near["images/a.png"].file == ""


@pytest.mark.parametrize("name", ["day1/b.png", "b.png"], ids=["folder too much", "folder missing"])
def test_find_near__keeps_folders_where_other_names_have_the_right_ones(name: str) -> None:
    files = ["a.png", "b.png" if "/" in name else "day1/b.png"]
    assert find_similar(FOLDER, files, [name], ["a.png"])[name].file == ""
    assert find_similar(FOLDER, files, [name], [])[name].file


def test_find_near__prefers_another_folder_that_has_the_very_name(tmp_path: Path) -> None:
    for place in ("train/1.png", "val/1.png", "val/2.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    for name, fitting in (("val/1.png", tmp_path), ("2.png", tmp_path / "val")):
        near = find_similar(tmp_path / "train", ["1.png"], [name], [])[name]
        assert (near.file, near.cause) == ("", f"`{fitting}` has files of these names (give it as the image folder)")


def test_find_near__one_cause_for_many(tmp_path: Path) -> None:
    files = [f"scene{i}/rgb.png" for i in range(2000)]
    near = find_similar(tmp_path, files, [f"{tmp_path.name}/scene{i}/RGB.png" for i in range(2000)], [])
    assert len(near) == 2000
    assert len({one.cause for one in near.values()}) == 1
    assert {one.file for one in near.values()} == set(files)
