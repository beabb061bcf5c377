"""YAML files that vispeft wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from vispeft.errors import DataError
from vispeft.io.yaml_files import read_mapping


def test_read_mapping__returns_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {lr: 0.001, steps: 4}\nname: ü\n", encoding="utf-8")
    assert read_mapping(path) == {"train": {"lr": 0.001, "steps": 4}, "name": "ü"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [", "is not valid YAML"),
        (b"\0", "is not valid YAML"),
        (b"\xff\xfe\xff", "is not valid YAML"),
        (b"[" * 10_000, "is not valid YAML"),
        (b"!!python/object:os.system {}", "is not valid YAML"),
        (b"", "must hold a mapping"),
        (b"3", "must hold a mapping"),
    ],
)
def test_read_mapping__names_the_file_and_its_fault(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"config\.yaml` {told}"):
        read_mapping(path)


def test_read_mapping__names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(DataError, match="cannot be read"):
            read_mapping(path)
