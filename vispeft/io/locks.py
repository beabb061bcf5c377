"""Locks that are released when the process that holds them ends, even by a crash."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path
from typing import Self

from vispeft.errors import TrainingError, writing


class LocksMissingError(TrainingError):
    """A file system without locks, as some network file systems are mounted."""


class FileLock:
    """Exclusive lock on a file, between processes that share a file system.

    It is SQLite's own lock on an empty database: the system releases it when its process dies, child processes do
    not inherit it, and it works wherever SQLite does.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def try_hold(cls, path: Path, *, patience_seconds: float = 0.0) -> Self | None:
        """Return the held lock, or None if another process still has it after `patience_seconds`.

        Raises LocksMissingError where no file can be locked, TrainingError where none can be written.
        """
        with writing(path, TrainingError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                connection.close()
                if "locked" not in str(error):
                    raise
                if not _has_locks(path.parent):
                    raise LocksMissingError(
                        f"`{path.parent}` is on a file system without file locks, so that several processes could "
                        "write there at once. Name a folder on another file system."
                    ) from error
                return None
        return cls(connection, path)

    def release(self, *, remove: bool = False) -> None:
        """Release the lock. remove: delete the file, which is no longer needed."""
        self._connection.close()
        if remove:
            self._path.unlink(missing_ok=True)


def _has_locks(folder: Path) -> bool:
    """Return True if a new file in the folder can be locked: SQLite does not tell a missing lock from a held one."""
    probe = folder / f".{secrets.token_hex(4)}.lock"
    connection = sqlite3.connect(probe, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    else:
        return True
    finally:
        connection.close()
        probe.unlink(missing_ok=True)
