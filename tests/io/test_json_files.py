"""JSON files: one clear error for each fault."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from vispeft.errors import DataError, TrainingError
from vispeft.io.json_files import UnreadableJsonError, load_json, read_json, read_object, write_json


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (gzip.compress(b"{}", mtime=0), "compressed file; unpack it first"),
        (b'{"a": [1, 2', r"line 1, column 12 .* cut off"),
        (b'{"a": "b', "cut off"),
        (b'{"a": 1,, "b": 2}', r"line 1, column 9 \(character 8\)\.$"),
        (b"{}\n{}\n", "must hold one value"),
        (b"\x89PNG\xff", "no UTF-8 text"),
        (b"[" * 100_000, "not valid JSON: it is nested too deeply"),
        (b"1" * 5000, "not valid JSON"),
    ],
)
def test_read_json__tells_the_fault(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        read_json(path)
    assert str(error.value).startswith(f"`{path}` ")


def test_load_json__tells_apart_a_missing_file_and_bad_json(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "none.json", "no-file"), (tmp_path, "no-file")):
        with pytest.raises(UnreadableJsonError) as error:
            load_json(path)
        assert error.value.kind == kind


def test_load_json__gives_every_key_of_an_object(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1, "a": 2}]')
    assert load_json(path, build_object=tuple) == [(("a", 1), ("a", 2))]
    assert load_json(path) == [{"a": 2}]


def test_read_object__is_empty_without_a_file_and_refuses_other_values(tmp_path: Path) -> None:
    assert read_object(tmp_path / "none.json") == {}
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        read_object(tmp_path / "list.json")


def test_write_json__round_trips_and_refuses_what_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ü": [1, None, 0.5]}, raises=TrainingError, indent=1)
    assert read_json(path) == {"ü": [1, None, 0.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"), raises=TrainingError)
    assert read_json(path) == {"ü": [1, None, 0.5]}
