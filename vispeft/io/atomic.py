"""Atomic writes: at any moment a file has its old content or all of the new."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vispeft.errors import VispeftError, writing

PARTIAL_SUFFIX = ".partial"
"""Ending of a file that is being written, or was when its process was killed."""

# of the file's own name, so that the partial file's name is never too long for the file system
_KEPT_CHARACTERS = 40


@contextlib.contextmanager
def replacing(path: Path, raises: type[VispeftError], *others: type[Exception]) -> Iterator[Path]:
    """Context with the path of a partial file, empty at first, that replaces `path` at the end of the `with` block.

    After an error the partial file is removed and `path` is as before. Processes that write the same file at once do
    not meet: each has a partial file of its own, and the last one to end replaces the others' content. Where `path` is
    a link, the file that it names is replaced; a device or pipe is written to at the end.

    raises: error for a file that cannot be written
    others: exceptions of a library for the same, beside OSError
    """
    if not path.name:
        raise raises(f"`{path}` must be the name of a file, but has none.")
    with writing(path, raises):
        is_special = path.exists() and not path.is_file() and not path.is_dir()
    if is_special:
        with _filling(path, raises, *others) as partial:
            yield partial
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    partial = target.with_name(f".{target.name[:_KEPT_CHARACTERS]}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    with writing(path, raises, *others):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch(exist_ok=False)
            mode = partial.stat().st_mode
            yield partial
            if partial.stat().st_mode != mode:
                # a library that makes the file itself may let only its owner read it
                partial.chmod(mode)
            os.replace(partial, target)
        except OSError as error:
            if str(error.filename) == str(partial):
                # the message is about `path`
                error.filename = None
            raise
        finally:
            # where nothing can be written, perhaps nothing can be removed
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _filling(path: Path, raises: type[VispeftError], *others: type[Exception]) -> Iterator[Path]:
    """Context with the path of a temporary file, empty at first, whose content is written to a device or pipe."""
    with writing(path, raises, *others), tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "content"
        partial.touch()
        yield partial
        with partial.open("rb") as content, path.open("wb") as special:
            shutil.copyfileobj(content, special)


def write_bytes(path: Path, content: bytes, *, raises: type[VispeftError]) -> None:
    """Write a file atomically. raises: error for a file that cannot be written"""
    with replacing(path, raises) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str, *, raises: type[VispeftError]) -> None:
    """Write a text file atomically, in UTF-8 and with line ends as given.

    raises: error for a file that cannot be written
    """
    write_bytes(path, text.encode("utf-8"), raises=raises)


def remove_partials(folder: Path) -> None:
    """Remove the partial files that killed processes left in a folder in which no other process writes now."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)
