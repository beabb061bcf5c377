"""Stores of kept features: in memory, or on disk as safetensors shards that any number of processes share."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from vispeft.errors import TrainingError, writing
from vispeft.io.atomic import remove_partials
from vispeft.io.locks import FileLock
from vispeft.io.tensors import open_tensors, write_tensors
from vispeft.training.memory import available_memory_bytes

Entry = Mapping[str, Tensor]
"""Entry of one image: tensors by name, on the CPU."""

_HEADER = "vispeft_features"
_OPEN_SHARDS = 64
# errors from reading damaged or truncated files
_READ_ERRORS = (SafetensorError, OSError, ValueError, TypeError)
# shares of the free memory and of the free disk: other programs need some too
_SHARE_OF_MEMORY = 0.8
_SHARE_OF_DISK = 0.9


class FeatureStore(Protocol):
    """A store of entries by key."""

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without a valid entry, each once."""

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Store entries."""

    def get(self, key: str) -> Entry:
        """Return the entry of a key; `missing` must not have named the key."""

    def room(self, wanted: int) -> int | None:
        """Return the bytes that may still be stored, None if unknown. Room is made for `wanted` bytes if possible."""

    def filling(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which no other process fills the store."""


class FeatureMemory:
    """Features that the runs of one process keep in memory, by the fingerprint of their computation."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {}
        self._in_use: set[str] = set()

    def begin_run(self) -> None:
        """Begin another run: features of earlier runs may be dropped to make room for those of the new one."""
        self._in_use.clear()

    def store(self, fingerprint: str) -> MemoryStore:
        """Return the store of a fingerprint (of frozen prefix and batch size) for the run that began last."""
        # moved to the end: features that were not used for longest are dropped first
        entries = self._entries[fingerprint] = self._entries.pop(fingerprint, {})
        self._in_use.add(fingerprint)
        return MemoryStore(entries, self)

    def drop_oldest(self) -> bool:
        """Drop the features unused for longest. Return False if the run that began last uses all that are left."""
        oldest = next((name for name in self._entries if name not in self._in_use), None)
        if oldest is not None:
            del self._entries[oldest]
        return oldest is not None


class MemoryStore:
    """A store of entries in memory."""

    def __init__(self, entries: dict[str, Entry], memory: FeatureMemory) -> None:
        self._entries = entries
        self._memory = memory

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without an entry, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._entries]

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Store entries."""
        self._entries.update(entries)

    def get(self, key: str) -> Entry:
        """Return the entry of a key; `missing` must not have named the key."""
        return self._entries[key]

    def room(self, wanted: int) -> int | None:
        """Return the bytes that may still be stored, None if unknown; drop features of earlier runs if needed."""
        while True:
            free = available_memory_bytes()
            room = None if free is None else int(_SHARE_OF_MEMORY * free)
            if room is None or room >= wanted or not self._memory.drop_oldest():
                return room

    def filling(self) -> contextlib.AbstractContextManager[None]:
        """Return a context without effect: no other process shares this memory."""
        return contextlib.nullcontext()


class _Content(NamedTuple):
    """Record of an entry in a shard's metadata: the names of its tensors, and their checksum."""

    names: tuple[str, ...]
    checksum: int


class DirectoryStore:
    """A store of entries as safetensors shards in a directory.

    Shards are written atomically. Every entry has a checksum, which a process verifies before it first uses the entry.
    A damaged shard is removed with a warning, and its entries count as missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shard_of: dict[str, Path] = {}
        self._contents: dict[Path, Mapping[str, _Content]] = {}
        self._verified: set[Path] = set()
        self._open: Any = lru_cache(maxsize=_OPEN_SHARDS)(open_tensors)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without a valid entry, each once."""
        keys = list(dict.fromkeys(keys))
        self._read_new_shards()
        for path in {self._shard_of[key] for key in keys if key in self._shard_of} - self._verified:
            try:
                self._verify(path)
                self._verified.add(path)
            except _READ_ERRORS as error:
                self._remove(path, error)
        return [key for key in keys if key not in self._shard_of]

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Store entries as one shard."""
        path = self.root / f"{uuid.uuid4().hex}.safetensors"
        contents = {key: _Content(tuple(entry), _checksum(entry)) for key, entry in entries.items()}
        tensors = {f"{key}/{name}": tensor for key, entry in entries.items() for name, tensor in entry.items()}
        write_tensors(path, tensors, {_HEADER: json.dumps(contents)}, raises=TrainingError)
        self._register(path, contents)
        self._verified.add(path)

    def get(self, key: str) -> Entry:
        """Return the entry of a key; `missing` must not have named the key."""
        path = self._shard_of[key]
        try:
            return _read_entry(self._open(path), key, self._contents[path][key])
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"`{path}` must stay unchanged while a run uses it, but cannot be read any more: {error}. "
                "Continue the run with --resume: the features of this file are computed again."
            ) from error

    def room(self, wanted: int) -> int | None:
        """Return the bytes that may still be stored."""
        with writing(self.root, TrainingError):
            self.root.mkdir(parents=True, exist_ok=True)
        return int(_SHARE_OF_DISK * shutil.disk_usage(self.root).free)

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Wait for the directory's lock and hold it in the `with` block, so that one process at a time fills it."""
        lock = self._acquire_lock()
        try:
            remove_partials(self.root)
            yield
        finally:
            lock.release()

    def _acquire_lock(self) -> FileLock:
        path, is_waiting = self.root / "filling.lock", False
        while (lock := FileLock.try_hold(path, patience_seconds=1.0)) is None:
            if not is_waiting:
                warnings.warn(f"`{self.root}` is being filled by another process. Waiting for it.", stacklevel=4)
            is_waiting = True
        return lock

    def _read_new_shards(self) -> None:
        """Read the metadata of shards that this process does not know yet."""
        for path in sorted(self.root.glob("*.safetensors")):
            if path in self._contents:
                continue
            try:
                self._register(path, _read_contents(self._open(path)))
            except _READ_ERRORS as error:
                self._remove(path, error)

    def _register(self, path: Path, contents: Mapping[str, _Content]) -> None:
        self._contents[path] = contents
        for key in contents:
            self._shard_of.setdefault(key, path)

    def _verify(self, path: Path) -> None:
        file = self._open(path)
        for key, content in self._contents[path].items():
            if _checksum(_read_entry(file, key, content)) != content.checksum:
                raise ValueError(f"the checksum of {key} differs")

    def _remove(self, path: Path, error: Exception) -> None:
        if path.is_file():
            warnings.warn(
                f"`{path}` is damaged and was removed ({error}). Its features are computed again.", stacklevel=2
            )
            path.unlink(missing_ok=True)
        self._open.cache_clear()
        self._contents.pop(path, None)
        self._shard_of = {key: shard for key, shard in self._shard_of.items() if shard != path}


def _read_contents(file: Any) -> Mapping[str, _Content]:
    found = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    if not isinstance(found, dict):
        raise ValueError("it is not a file of kept features")
    return {key: _Content(tuple(names), int(checksum)) for key, (names, checksum) in found.items()}


def _read_entry(file: Any, key: str, content: _Content) -> Entry:
    """Return one entry of an open shard."""
    return {name: file.get_tensor(f"{key}/{name}") for name in content.names}


def _checksum(entry: Entry) -> int:
    """Return the CRC-32 of the names, kinds and contents of an entry's tensors."""
    value = 0
    for name in sorted(entry):
        tensor = entry[name].contiguous()
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value
