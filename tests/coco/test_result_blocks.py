"""Results of a file are the same in blocks of any size; what is no plain list fails at any size."""

import json
from pathlib import Path

import pytest

from vispeft.coco import result_blocks
from vispeft.coco.result_blocks import blocks_of_file, blocks_of_list

RESULT = {"image_id": 1, "category_id": 2, "bbox": [0, 0.5, 4, 4], "score": 0.5}
MASK = {"segmentation": {"size": [4, 6], "counts": "0h0"}}
SIZES = [1, 7, 64, 150, 2**18]


def file_of(folder: Path, text: str) -> Path:
    path = folder / "results.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("indent", [None, 2, 40])
def test_blocks_of_file__of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, indent: int) -> None:
    monkeypatch.setattr(result_blocks, "_BLOCK", size)
    results = [RESULT | MASK | {"image_id": number, "note": "} {"} for number in range(20)]
    expected = [one for block in blocks_of_list(results) for one in block]
    found = [one for block in blocks_of_file(file_of(tmp_path, json.dumps(results, indent=indent))) for one in block]
    assert found == expected
    assert [one.image_id for one in found] == list(range(20))


def test_blocks_of_file__are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_blocks, "_BLOCK", 300)
    assert len(list(blocks_of_file(file_of(tmp_path, json.dumps([RESULT] * 20))))) > 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[",
        "[{",
        json.dumps([RESULT]) + "x",
        json.dumps([RESULT] * 9)[:-1],
        json.dumps([RESULT] * 9).replace("}, {", "},, {", 1),
        json.dumps([RESULT] * 9).replace("[{", "[, {", 1),
        json.dumps([RESULT] * 9).replace("}]", "},]"),
        json.dumps([RESULT] * 9 + [RESULT | {"note": "\u00fc"}]).replace("\\u00fc", "\u00fc"),
    ],
    ids=["empty", "object", "cut", "cut-object", "more", "open", "two-commas", "first-comma", "last-comma", "ascii"],
)
def test_blocks_of_file__refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, text: str) -> None:
    monkeypatch.setattr(result_blocks, "_BLOCK", size)
    with pytest.raises(ValueError):  # noqa: PT011
        list(blocks_of_file(file_of(tmp_path, text)))


def test_blocks_of_file__a_list_within_a_result_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, json.dumps([RESULT | {"parts": [RESULT] * 3, "note": "}, {"}] * 5))
    assert sum(map(len, blocks_of_file(path))) == 5
    monkeypatch.setattr(result_blocks, "_BLOCK", 200)
    with pytest.raises(ValueError):  # noqa: PT011
        list(blocks_of_file(path))
