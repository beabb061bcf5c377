"""Errors that a user can cause. Each is a `VispeftError` whose message tells what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class VispeftError(Exception):
    """Base of every error that vispeft raises on purpose: one message that names what is wrong and the remedy."""


class ConfigError(VispeftError):
    """A configuration key, value or file that cannot be used."""


class DataError(VispeftError):
    """A data set file, image or annotation that must not be trained or scored on."""


class PlanError(VispeftError):
    """A pattern, method or site that a plan cannot serve."""


class CheckpointError(VispeftError):
    """A weights, adapter or checkpoint file that does not fit what it is loaded into."""


class TrainingError(VispeftError):
    """A training run that cannot go on: non-finite loss, parameters without gradient, a directory in use."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *others: type[Exception]) -> Iterator[None]:
    """Context that turns errors in writing `path` (a full disk, a read-only place) into one clear CheckpointError.

    others: exceptions of a library for the same, beside OSError
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except kinds as error:
        reason = describe_io_error(error)
        raise CheckpointError(
            f"`{os.fspath(path)}` cannot be written: {reason}. Make room, or name another place."
        ) from (error)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            # where nothing can be written, it may be that nothing can be removed
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def describe_io_error(error: Exception) -> str:
    """Return the reason that a file cannot be read or written, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__
