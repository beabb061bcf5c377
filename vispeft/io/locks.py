"""Locks that are released when the process that holds them ends, even by a crash."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Self

from vispeft.errors import TrainingError, writing


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
        """Return the held lock, or None if another process still has it after `patience_seconds`."""
        with writing(path, TrainingError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                connection.close()
                if "locked" in str(error):
                    return None
                raise
        return cls(connection, path)

    def release(self, *, remove: bool = False) -> None:
        """Release the lock. remove: delete the file, which is no longer needed."""
        self._connection.close()
        if remove:
            self._path.unlink(missing_ok=True)
