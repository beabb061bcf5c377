"""Download of a file by its address into the cache: resumed after an interruption, checked, and never fetched twice."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vispeft.errors import CheckpointError, ConfigError, describe_io_error, writing
from vispeft.io.atomic import PARTIAL_SUFFIX
from vispeft.io.cache import cache_dir, offline_variable
from vispeft.io.checksums import Checksum, split_checksum
from vispeft.io.locks import FileLock, LocksMissingError

# told after each block: bytes that are here, and of the whole file
Report = Callable[[int, int], None]

_BLOCK = 1 << 18
_TIMEOUT_SECONDS = 30.0
# attempts without a new byte before the download ends
_PATIENCE = 3
_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
_UNSAFE = re.compile(r"[^\w.-]")
_LONGEST_NAME = 150


def is_url(source: str) -> bool:
    """Return True for the address of a file."""
    return source.startswith(("https://", "http://"))


def cached_path(url: str) -> Path:
    """Return the place of a downloaded file, in a folder of its address; the file need not be there."""
    address, _ = split_checksum(url)
    # dots in front would hide the file, or name another folder
    name = _UNSAFE.sub("_", unquote(Path(urlsplit(address).path).name)).lstrip(".")[-_LONGEST_NAME:] or "file"
    return cache_dir() / "downloads" / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def download(url: str, report: Report | None = None) -> Path:
    """Return the path of a file, downloaded unless the cache has it.

    An interrupted download goes on where it ended. Several processes may ask for the same file: one of them fetches it.

    url: `https://...`, where `#sha256=...` may follow; names of files that carry a hash are checked by it

    Raises CheckpointError in one sentence without a network, for an address without a file, a file that ends early, a
    cache whose file system has no locks, or a wrong checksum; such a download is deleted, but not a file that the
    cache has had before.
    """
    address, checksum = split_checksum(url)
    _check_address(address)
    path = cached_path(url)
    if path.is_file():
        _check_cached(path, address, checksum)
        return path
    variable = offline_variable()
    if variable is not None:
        raise CheckpointError(
            f"{address} is not in the cache {cache_dir()}, and `{variable}` forbids the network. Run once without it."
        )
    with _alone(path):
        if not path.is_file():
            _fetch(_Transfer(address, path), report)
            _finish(_Transfer(address, path), checksum)
    return path


@dataclass(frozen=True)
class _Transfer:
    """An address, the path of its file, and beside it the part that has arrived and the tag of the server's file."""

    address: str
    path: Path

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)

    @property
    def tag(self) -> Path:
        return self.path.with_name(self.path.name + ".etag")

    @property
    def done(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def restart(self) -> None:
        """Delete what has arrived."""
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _check_address(address: str) -> None:
    """Raise ConfigError for an address without encryption, which another machine could answer."""
    parts = urlsplit(address)
    if not parts.hostname or (parts.scheme != "https" and parts.hostname not in _LOCAL_HOSTS):
        raise ConfigError(f"{address} must begin with https:// and the name of a host.")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Context of one process at a time."""
    with writing(path, CheckpointError):
        path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(path.name + ".lock")
    try:
        lock = FileLock.try_hold(place)
        if lock is None:
            warnings.warn(f"Another process downloads `{path}`. Waiting for it.", stacklevel=4)
        while lock is None:
            lock = FileLock.try_hold(place, patience_seconds=5.0)
    except LocksMissingError as error:
        raise CheckpointError(f"{error} The environment variable `VISPEFT_CACHE` is for that.") from error
    try:
        yield
    finally:
        lock.release()


def _check_cached(path: Path, address: str, checksum: Checksum | None) -> None:
    """Raise CheckpointError if a file of the cache lacks the checksum; one that has it is read for this only once."""
    if checksum is None:
        return
    record = _record(path)
    if record.is_file() and record.read_text(encoding="utf-8") == _verified(path, checksum):
        return
    if not checksum.fits(path):
        raise CheckpointError(
            f"`{path}`, which was downloaded from {address}, does not have the checksum {checksum.digits} "
            f"({' or '.join(checksum.kinds)}). Delete the file to download it again, or mend the checksum."
        )
    # a cache that another user fills may not be written
    with contextlib.suppress(OSError):
        record.write_text(_verified(path, checksum), encoding="utf-8")


def _record(path: Path) -> Path:
    """Return the path of the file that tells which checksum a file of the cache was found to have."""
    return path.with_name(path.name + ".checksum")


def _verified(path: Path, checksum: Checksum) -> str:
    """Return the content of the record for a file that has the checksum."""
    return f"{checksum.digits} {path.stat().st_size} {path.stat().st_mtime_ns}"


def _fetch(transfer: _Transfer, report: Report | None) -> None:
    """Fetch what is missing; after a broken connection try again while bytes arrive."""
    attempts = 0
    while True:
        before = transfer.done
        try:
            if _fetch_once(transfer, report):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise CheckpointError(
                    f"{transfer.address} cannot be downloaded: the server answers {error.code} ({error.reason}). Check "
                    "the address."
                ) from error
            reason = f"the server answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = describe_io_error(cause) if isinstance(cause, Exception) else str(cause)
        attempts = 0 if transfer.done > before else attempts + 1
        if attempts == _PATIENCE:
            kept = f"; the {transfer.done:,} bytes that have arrived are kept" if transfer.done else ""
            raise CheckpointError(
                f"{transfer.address} cannot be downloaded: {reason.rstrip('.')}{kept}. Check the network and run again."
            )
        time.sleep(0.2 * attempts)


def _fetch_once(transfer: _Transfer, report: Report | None) -> bool:
    """Append to the part from one connection; return True if the file is complete."""
    done = transfer.done
    headers = {"User-Agent": "vispeft", "Accept-Encoding": "identity"}
    if done and transfer.tag.exists():
        # the whole file comes where the server has another one by now
        headers |= {"Range": f"bytes={done}-", "If-Range": transfer.tag.read_text(encoding="utf-8")}
    request = urllib.request.Request(transfer.address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # nothing follows what has arrived: it is the whole file, or more than that
        is_whole = error.headers.get("Content-Range") == f"bytes */{done}"
        if not is_whole:
            transfer.restart()
        return is_whole
    with response:
        _check_address(response.geturl())
        if response.status != 206 or not _goes_on_at(response, done):
            transfer.restart()
            done = 0
        total = done + int(response.headers.get("Content-Length") or 0)
        _keep_tag(transfer, response)
        _append(transfer, response, total, report)
    return transfer.done == total or not response.headers.get("Content-Length")


def _goes_on_at(response: Any, done: int) -> bool:
    """Return True if a partial answer begins behind the bytes that have arrived."""
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {done}-")


def _keep_tag(transfer: _Transfer, response: Any) -> None:
    """Write down which file of the server this is; without a strong tag a part cannot go on."""
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    with writing(transfer.tag, CheckpointError):
        if tag and not tag.startswith("W/"):
            transfer.tag.write_text(tag, encoding="utf-8")


def _append(transfer: _Transfer, response: Any, total: int, report: Report | None) -> None:
    """Write the answer's bytes behind those of the part."""
    done = transfer.done
    with transfer.part.open("ab") as file:
        while block := response.read(_BLOCK):
            done += len(block)
            with writing(transfer.part, CheckpointError):
                file.write(block)
            if report is not None:
                report(done, total)


def _finish(transfer: _Transfer, checksum: Checksum | None) -> None:
    """Check a complete part and give it its name."""
    if checksum is not None and not checksum.fits(transfer.part):
        transfer.restart()
        raise CheckpointError(
            f"{transfer.address} does not have the checksum {checksum.digits} ({' or '.join(checksum.kinds)}): the "
            "download was deleted. Run again; if it fails again, the file is not the published one."
        )
    with writing(transfer.path, CheckpointError):
        transfer.part.replace(transfer.path)
        transfer.tag.unlink(missing_ok=True)
        if checksum is not None:
            _record(transfer.path).write_text(_verified(transfer.path, checksum), encoding="utf-8")
