"""Lock of a study, released when the process that holds it ends, even by a crash."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy

from vispeft.errors import TrainingError
from vispeft.io.locks import FileLock

_PATIENCE_SECONDS = 120.0
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class StudyLock:
    """Lock that lets one worker at a time claim a trial of a study, across all machines that use the storage."""

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
        """Hold the lock in the `with` block."""
        with self._in_file(self._path) if self._path is not None else self._in_server():
            yield

    @contextlib.contextmanager
    def _in_file(self, path: Path) -> Iterator[None]:
        """Hold the lock of a study in an SQLite file."""
        lock = FileLock.try_hold(path, patience_seconds=_PATIENCE_SECONDS)
        if lock is None:
            raise TrainingError(
                f"Another worker has held `{path}` for {_PATIENCE_SECONDS:.0f} s. Run the command again."
            )
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _in_server(self) -> Iterator[None]:
        """Hold the lock of a study on a PostgreSQL server."""
        assert self._engine is not None
        # the server releases the lock when the connection ends
        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SET lock_timeout = {int(_PATIENCE_SECONDS * 1000)}"))
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
            yield
