import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from vispeft.sweep.locks import FileLock, StudyLock
from vispeft.sweep.storage import storage_url

HOLD = """
import sys
from pathlib import Path
from vispeft.sweep.locks import FileLock
assert FileLock.try_hold(Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


def test_file_lock__ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert FileLock.try_hold(path) is None
        holder.kill()
    assert FileLock.try_hold(path) is not None


def test_file_lock__excludes_within_a_process_until_released(tmp_path: Path) -> None:
    lock = FileLock.try_hold(tmp_path / "lock")
    assert lock is not None
    assert FileLock.try_hold(tmp_path / "lock") is None
    lock.release(remove=True)
    assert not (tmp_path / "lock").exists()
    assert FileLock.try_hold(tmp_path / "lock") is not None


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
        assert other.execute(try_hold, {"key": lock._key}).scalar() is True


@pytest.mark.parametrize("url", ["sqlite://", "mysql://here/db", "no url"])
def test_storage_url__refuses_what_cannot_be_shared(url: str) -> None:
    from vispeft.errors import ConfigError

    with pytest.raises(ConfigError, match=r"`sweep\.storage` must"):
        storage_url(url)
