"""Atomic writes: old content or all of the new, whatever happens in between."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vispeft.errors import CheckpointError, DataError, TrainingError
from vispeft.io.atomic import remove_partials, replacing, write_bytes, write_text


@pytest.fixture
def umask():
    old = os.umask(0o022)
    yield
    os.umask(old)


def test_write_text__writes_utf8_with_line_ends_as_given_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.csv"
    write_text(path, "ü\r\nx\n", raises=DataError)
    assert path.read_bytes() == "ü\r\nx\n".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_replacing__gives_the_permissions_of_a_normal_file(tmp_path: Path, umask: None, mode: int) -> None:
    path = tmp_path / "file"
    with replacing(path, DataError) as partial:
        # as a library does that makes its files itself
        partial.unlink()
        partial.touch(mode=mode)
    assert path.stat().st_mode & 0o777 == 0o644


def test_replacing__keeps_the_old_content_and_nothing_else_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path, DataError) as partial:
        _write_half(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _write_half(path: Path) -> None:
    path.write_text("half of the n")
    raise ZeroDivisionError


def test_write_bytes__writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "file", tmp_path / "link"
    link.symlink_to("store/file")
    for content in (b"first", b"second"):
        write_bytes(link, content, raises=DataError)
        assert link.is_symlink()
        assert target.read_bytes() == content


def test_write_bytes__writes_into_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, b"content", raises=DataError)
    reader.join(timeout=10)
    assert found == [b"content"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("error", [CheckpointError, DataError, TrainingError])
def test_write_bytes__raises_the_error_of_the_kind_of_file(tmp_path: Path, error: type[Exception]) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(error, match=r"folder` cannot be written: Is a directory\. Make room"):
        write_bytes(path, b"x", raises=error)
    assert list(tmp_path.iterdir()) == [path]


def test_replacing__names_the_file_and_not_the_partial_one(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error, replacing(tmp_path / "file", DataError) as partial:
        partial.rename(tmp_path / "moved")
    assert str(error.value).startswith(f"`{tmp_path / 'file'}` cannot be written: No such file")
    assert "partial" not in str(error.value)


def test_replacing__turns_a_librarys_errors_too(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="cannot be written: 'disk quota'"),
        replacing(tmp_path / "x", DataError, KeyError),
    ):
        raise KeyError("disk quota")


def test_replacing__refuses_a_path_without_a_name() -> None:
    with pytest.raises(DataError, match="must be the name of a file"), replacing(Path(), DataError):
        pass


def test_replacing__serves_the_longest_name_of_a_file_system(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    write_text(path, "x", raises=DataError)
    assert path.read_text() == "x"


def test_replacing__writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([number]) * 200_000 for number in range(4)]
    threads = [
        threading.Thread(
            target=lambda content=content: [write_bytes(path, content, raises=DataError) for _ in range(5)]
        )
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_remove_partials__removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    write_text(tmp_path / "whole.json", "{}", raises=DataError)
    # entered and never left
    writer = replacing(tmp_path / "whole.json", DataError)
    writer.__enter__()
    assert len(list(tmp_path.iterdir())) == 2
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"]
