from pathlib import Path

import pytest
import sqlalchemy

from vispeft.io.locks import FileLock
from vispeft.sweep.locks import StudyLock
from vispeft.sweep.storage import storage_url


def test_study_lock__sqlite(tmp_path: Path) -> None:
    url = storage_url(f"sqlite:///{tmp_path}/study.db")
    with StudyLock(url, "a").held():
        assert FileLock.try_hold(tmp_path / "study.db.lock") is None
    assert FileLock.try_hold(tmp_path / "study.db.lock") is not None


def test_study_lock__postgresql(postgresql: str) -> None:
    url = storage_url(postgresql)
    lock = StudyLock(url, "a")
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    try_hold = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
    with lock.held(), engine.connect() as other:
        assert other.execute(try_hold, {"key": lock._key}).scalar() is False
        with StudyLock(url, "another study").held():
            pass
    with engine.connect() as other:
        # a server notices the end of a connection with a delay; after the timeout this raises
        other.execute(sqlalchemy.text("SET lock_timeout = 20000"))
        other.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": lock._key})


@pytest.mark.parametrize("url", ["sqlite://", "mysql://here/db", "no url"])
def test_storage_url__refuses_what_cannot_be_shared(url: str) -> None:
    from vispeft.errors import ConfigError

    with pytest.raises(ConfigError, match=r"`sweep\.storage` must"):
        storage_url(url)
