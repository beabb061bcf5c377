"""Opening of a study's database by several workers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from vispeft.errors import TrainingError
from vispeft.sweep import storage
from vispeft.sweep.storage import open_storage, storage_url


@pytest.fixture
def url(tmp_path: Path) -> sqlalchemy.URL:
    return storage_url(f"sqlite:///{tmp_path / 'study.db'}")


def failing_first(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[object]:
    """Make Optuna's storage fail with the error so many times; return a list that grows with each attempt."""
    attempts: list[object] = []
    real = optuna.storages.RDBStorage

    def opened(*args: Any, **kwargs: Any) -> optuna.storages.RDBStorage:
        attempts.append(args)
        if len(attempts) <= times:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(optuna.storages, "RDBStorage", opened)
    monkeypatch.setattr(storage, "_SECONDS_BETWEEN_ATTEMPTS", 0)
    return attempts


@pytest.mark.parametrize(
    "error",
    [
        sqlalchemy.exc.IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed: alembic_version.version_num")),
        sqlalchemy.exc.OperationalError("CREATE TABLE", {}, Exception("table studies already exists")),
    ],
)
def test_open_storage__waits_for_a_worker_that_makes_the_tables(
    error: Exception, url: sqlalchemy.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = failing_first(monkeypatch, error, times=2)
    assert open_storage(url, 60).get_all_studies() == []
    assert len(attempts) == 3


def test_open_storage__refuses_at_once_what_waiting_does_not_mend(
    url: sqlalchemy.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlalchemy.exc.OperationalError("PRAGMA", {}, Exception("file is not a database"))
    attempts = failing_first(monkeypatch, error, times=1)
    with pytest.raises(TrainingError, match=r"cannot be opened: .*file is not a database"):
        open_storage(url, 60)
    assert len(attempts) == 1
