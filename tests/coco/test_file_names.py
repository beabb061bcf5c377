from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vispeft.coco.file_names import with_file_names
from vispeft.coco.problems import Findings
from vispeft.data.reading.check import check_dataset, write_fixed
from vispeft.errors import DataError


def renamed(document: dict[str, Any], key: str, prefix: str) -> dict[str, Any]:
    """The document with its file names under another key, behind a prefix."""
    for image in document["images"]:
        image[key] = prefix + image.pop("file_name")
    return document


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("coco_url", "http://images.cocodataset.org/train2017/"),
        ("path", "C:\\data\\images\\"),
        ("path", "/home/me/images/"),
        ("filename", ""),
        ("file", "./"),
    ],
)
def test_with_file_names__takes_the_name_of_a_file_that_is_there(
    write: Any, folder: Path, document: dict[str, Any], key: str, prefix: str
) -> None:
    path, out = write(renamed(document, key, prefix)), folder.parent / "fixed.json"
    (problem,) = (p for p in check_dataset(path, folder).refusals if p.kind == "bad-file-name")
    assert f"has no `file_name` but `{key}`" in problem.message
    write_fixed(path, folder, out)
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.png", "b.png"]
    assert check_dataset(out, folder).problems == ()


def test_with_file_names__keeps_the_folders_that_are_there(folder: Path, document: dict[str, Any]) -> None:
    (folder / "train2017").mkdir()
    (folder / "train2017" / "a.png").write_bytes((folder / "a.png").read_bytes())
    done = with_file_names(renamed(document, "coco_url", "http://x.org/train2017/"), folder, Findings(True))
    assert [image["file_name"] for image in done["images"]] == ["train2017/a.png", "b.png"]


@pytest.mark.parametrize("prefix", ["http://x.org/no-", "../images/", "http://x.org/%2e%2e/images/"])
def test_with_file_names__guesses_nothing(write: Any, folder: Path, document: dict[str, Any], prefix: str) -> None:
    with pytest.raises(DataError, match="no annotation is left"):
        write_fixed(write(renamed(document, "coco_url", prefix)), folder, folder.parent / "fixed.json")
