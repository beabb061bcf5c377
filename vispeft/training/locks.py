"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Self

from vispeft.errors import TrainingError


class FileLock:
    """Exclusive hold of a file, between processes that see the same file system.

    It is SQLite's own lock on an empty database: the system takes it back from a process that dies, child processes do
    not inherit it, and it works wherever SQLite does.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def try_hold(cls, path: Path, *, patience_seconds: float = 0.0) -> Self | None:
        """The lock, or None while another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            connection.close()
            if "locked" in str(error):
                return None
            raise TrainingError(f"`{path}` cannot be locked: {error}.") from error
        return cls(connection, path)

    def release(self, *, remove: bool = False) -> None:
        """Let others have it. remove: nobody needs the file any longer."""
        self._connection.close()
        if remove:
            self._path.unlink(missing_ok=True)
