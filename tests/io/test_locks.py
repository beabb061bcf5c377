import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vispeft.errors import TrainingError
from vispeft.io import locks
from vispeft.io.locks import FileLock, LocksMissingError

HOLD = """
import sys
from pathlib import Path
from vispeft.io.locks import FileLock
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


def test_file_lock__names_a_place_where_no_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "lock", tmp_path / "folder"):
        with pytest.raises(TrainingError, match=f"`{path}` cannot be written"):
            FileLock.try_hold(path)


def test_file_lock__tells_a_file_system_without_locks_from_a_held_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, *_: object) -> sqlite3.Cursor:  # type: ignore[override]
            raise sqlite3.OperationalError("database is locked")  # SQLite's answer to ENOLCK

    monkeypatch.setattr(locks.sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=Connection))
    with pytest.raises(LocksMissingError, match=f"`{tmp_path}` is on a file system without file locks"):
        FileLock.try_hold(tmp_path / "lock")
