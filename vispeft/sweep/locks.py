"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import sqlalchemy

from vispeft.errors import TrainingError

_PATIENCE_SECONDS = 120.0
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


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


class StudyLock:
    """One worker at a time looks at a study and takes a trial from it, on every machine that uses the storage."""

    def __init__(self, url: sqlalchemy.URL, study_name: str) -> None:
        self._key = int.from_bytes(hashlib.sha256(study_name.encode()).digest()[:8], "big", signed=True)
        self._path: Path | None = None
        self._engine: sqlalchemy.Engine | None = None
        if url.get_backend_name() == "sqlite":
            self._path = Path(f"{url.database}.lock")
        else:
            self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=_KEEPALIVE)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, no other worker is."""
        with self._in_file(self._path) if self._path is not None else self._in_server():
            yield

    @contextlib.contextmanager
    def _in_file(self, path: Path) -> Iterator[None]:
        lock = FileLock.try_hold(path, patience_seconds=_PATIENCE_SECONDS)
        if lock is None:
            raise TrainingError(f"`{path}` is held by another worker for more than {_PATIENCE_SECONDS:.0f} s.")
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _in_server(self) -> Iterator[None]:
        assert self._engine is not None
        # the server takes the lock back when the connection ends
        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SET lock_timeout = {int(_PATIENCE_SECONDS * 1000)}"))
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
            yield
