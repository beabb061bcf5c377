"""Database of a study: SQLite on one machine, PostgreSQL across machines."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy

from vispeft.errors import ConfigError, TrainingError

_BACKENDS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
# number of missed heartbeats after which a worker on another machine counts as dead
_MISSED_HEARTBEATS = 4
STORAGE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError)
_ATTEMPTS = 10
_SECONDS_BETWEEN_ATTEMPTS = 0.3
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def storage_url(text: str) -> sqlalchemy.URL:
    """Return the URL of `sweep.storage`, with the driver that vispeft uses."""
    try:
        url = sqlalchemy.make_url(text)
    except sqlalchemy.exc.ArgumentError as error:
        raise ConfigError(
            "`sweep.storage` must be like sqlite:///study.db or postgresql://user:password@host/database, "
            f"but is {text!r}."
        ) from error
    name = url.drivername.partition("+")[0]
    if name not in _BACKENDS:
        raise ConfigError(f"`sweep.storage` must be sqlite:///... or postgresql://..., but begins with {name!r}.")
    if name == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError(
            "`sweep.storage` must name a file, such as sqlite:///study.db, so that the sweep can be resumed."
        )
    return url if "+" in url.drivername else url.set(drivername=_BACKENDS[name])


def open_storage(url: sqlalchemy.URL, heartbeat_seconds: int) -> optuna.storages.RDBStorage:
    """Open the storage and create its tables. No connection stays open, because loader processes would inherit it."""
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine: dict[str, object] = {"poolclass": sqlalchemy.NullPool}
    # the workers of one machine wait for each other
    engine["connect_args"] = {"timeout": 120} if is_sqlite else {"connect_timeout": 30}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with quiet():
            for _ in range(_ATTEMPTS - 1):
                try:
                    return _opened(url, engine, heartbeat_seconds)
                except sqlalchemy.exc.SQLAlchemyError as error:
                    if not _is_being_made(error):
                        raise
                    time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
            return _opened(url, engine, heartbeat_seconds)
    except ImportError as error:
        raise TrainingError(
            f"`sweep.storage` {redacted(url)} needs a driver that is not installed: pip install 'vispeft[postgresql]'."
        ) from error
    except (*STORAGE_ERRORS, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(f"`sweep.storage` {redacted(url)} cannot be opened: {reason}") from error


def _opened(url: sqlalchemy.URL, engine: dict[str, object], heartbeat_seconds: int) -> optuna.storages.RDBStorage:
    """Return Optuna's storage."""
    return optuna.storages.RDBStorage(
        url.render_as_string(hide_password=False),
        engine_kwargs=engine,
        heartbeat_interval=heartbeat_seconds,
        grace_period=_MISSED_HEARTBEATS * heartbeat_seconds,
    )


def _is_being_made(error: Exception) -> bool:
    """Return True for the error of a worker that creates the tables while another one does."""
    return isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)


def redacted(url: sqlalchemy.URL) -> str:
    """Return the URL without its password."""
    return url.render_as_string(hide_password=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's warnings about heartbeats without `Study.optimize` and ranges rounded to their step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        warnings.filterwarnings("ignore", message="The distribution is specified by")
        yield


@contextlib.contextmanager
def heartbeats(storage: optuna.storages.RDBStorage, trial_id: int) -> Iterator[None]:
    """Record heartbeats of the trial in the `with` block, so that no other worker takes it over."""
    is_finished = threading.Event()
    seconds = storage.get_heartbeat_interval() or 1

    def beat() -> None:
        while not is_finished.wait(seconds):
            # a server that is unavailable for a moment must not end the trial
            with contextlib.suppress(*STORAGE_ERRORS):
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, name=f"heartbeat of trial {trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_finished.set()
        thread.join()


def machine_id() -> str:
    """Return an identifier of this machine since its last boot: host name and boot id."""
    try:
        return f"{socket.gethostname()} {_BOOT_ID.read_text().strip()}"
    except OSError:
        return socket.gethostname()
