"""Errors that a user can cause. Each is a `VispeftError` whose message names the remedy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class VispeftError(Exception):
    """Base of every error that vispeft raises on purpose: one message with the fault and the remedy."""


class ConfigError(VispeftError):
    """A configuration key, value or file that cannot be used."""


class DataError(VispeftError):
    """A data set, results or image file that cannot be read, written, trained on or scored."""


class PlanError(VispeftError):
    """A pattern, method or site that a plan cannot serve."""


class CheckpointError(VispeftError):
    """A weights, adapter or checkpoint file that cannot be read or written, or does not fit the model."""


class TrainingError(VispeftError):
    """A training run that cannot go on (non-finite loss, parameters without gradient), or its files and reports."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], raises: type[VispeftError], *others: type[Exception]) -> Iterator[None]:
    """Context that turns errors in writing `path` (a full disk, a read-only place) into one clear error.

    raises: error for the kind of file that `path` is
    others: exceptions of a library for the same, beside OSError
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except kinds as error:
        reason = describe_io_error(error)
        raise raises(f"`{os.fspath(path)}` cannot be written: {reason}. Make room, or name another place.") from error


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], raises: type[VispeftError]) -> Iterator[None]:
    """Context that turns errors in reading `path`, a file or a folder, into one clear error.

    raises: error for the kind of file that `path` is
    """
    try:
        yield
    except OSError as error:
        raise raises(f"{os.fspath(path)} cannot be read: {describe_io_error(error)}. Check its permissions.") from error


def describe_io_error(error: Exception) -> str:
    """Return the reason that a file cannot be read or written, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__
