"""Stores of cached features: in memory, or on disk as safetensors shards that any number of processes share."""

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
# what reading hostile or cut off bytes raises
_DAMAGE = (SafetensorError, OSError, ValueError, TypeError)
# of what is free: others need some of it too
_SHARE_OF_MEMORY = 0.8
_SHARE_OF_DISK = 0.9


class FeatureStore(Protocol):
    """A store of entries by key."""

    def lacking(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that have no valid entry, each once."""

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Store entries."""

    def get(self, key: str) -> Entry:
        """Return the entry of a key that is not lacking."""

    def room(self, wanted: int) -> int | None:
        """Return the bytes that may still be stored, at least `wanted` if room can be made; None if unknown."""

    def filling(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which no other process fills the store."""


class FeatureMemory:
    """Features that the runs of one process keep in memory, by the fingerprint of the computation."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Entry]] = {}
        self._in_use: set[str] = set()

    def begin_run(self) -> None:
        """Begin another run: features of earlier runs may be dropped to make room for its own."""
        self._in_use.clear()

    def store(self, fingerprint: str) -> MemoryStore:
        """Return the store of a fingerprint (a frozen prefix and its inputs) for the run that began last."""
        # the latest last: what was used longest ago makes room first
        entries = self._kinds[fingerprint] = self._kinds.pop(fingerprint, {})
        self._in_use.add(fingerprint)
        return MemoryStore(entries, self)

    def forget_oldest(self) -> bool:
        """Drop the features unused for longest. Returns False if the run that began last uses all there are."""
        oldest = next((name for name in self._kinds if name not in self._in_use), None)
        if oldest is not None:
            del self._kinds[oldest]
        return oldest is not None


class MemoryStore:
    """A store of entries in memory."""

    def __init__(self, entries: dict[str, Entry], memory: FeatureMemory) -> None:
        self._entries = entries
        self._memory = memory

    def lacking(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that have no entry, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._entries]

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Store entries."""
        self._entries.update(entries)

    def get(self, key: str) -> Entry:
        """Return the entry of a key that is not lacking."""
        return self._entries[key]

    def room(self, wanted: int) -> int | None:
        """Return the bytes that may still be stored; drop features of earlier runs if needed. None if unknown."""
        while True:
            free = available_memory_bytes()
            room = None if free is None else int(_SHARE_OF_MEMORY * free)
            if room is None or room >= wanted or not self._memory.forget_oldest():
                return room

    def filling(self) -> contextlib.AbstractContextManager[None]:
        """Return an empty context: no other process shares this memory."""
        return contextlib.nullcontext()


class _Content(NamedTuple):
    """Record of an entry in a shard's metadata: the names of its tensors, and their checksum."""

    names: tuple[str, ...]
    checksum: int


class DirectoryStore:
    """A store of entries as safetensors shards in a directory.

    Shards are written atomically, and every entry has a checksum, which is compared before the first use
    in a process; a damaged shard is removed with a warning, and its entries are lacking.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shard_of: dict[str, Path] = {}
        self._contents: dict[Path, Mapping[str, _Content]] = {}
        self._sound: set[Path] = set()
        self._opened: Any = lru_cache(maxsize=_OPEN_SHARDS)(open_tensors)

    def lacking(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that have no valid entry, each once."""
        keys = list(dict.fromkeys(keys))
        self._look()
        for path in {self._shard_of[key] for key in keys if key in self._shard_of} - self._sound:
            try:
                self._check(path)
                self._sound.add(path)
            except _DAMAGE as error:
                self._drop(path, error)
        return [key for key in keys if key not in self._shard_of]

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Store entries as one shard."""
        path = self.root / f"{uuid.uuid4().hex}.safetensors"
        contents = {key: _Content(tuple(entry), _checksum(entry)) for key, entry in entries.items()}
        tensors = {f"{key}/{name}": tensor for key, entry in entries.items() for name, tensor in entry.items()}
        write_tensors(path, tensors, {_HEADER: json.dumps(contents)}, raises=TrainingError)
        self._note(path, contents)
        self._sound.add(path)

    def get(self, key: str) -> Entry:
        """Return the entry of a key that is not lacking."""
        path = self._shard_of[key]
        try:
            return _entry(self._opened(path), key, self._contents[path][key])
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"`{path}` must stay as it is while a run uses it, but cannot be read now: {error}. "
                "Go on with --resume: what it held is computed again."
            ) from error

    def room(self, wanted: int) -> int | None:
        """Return the bytes that may still be stored."""
        with writing(self.root, TrainingError):
            self.root.mkdir(parents=True, exist_ok=True)
        return int(_SHARE_OF_DISK * shutil.disk_usage(self.root).free)

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Hold the directory's lock in the `with` block, so that one process at a time fills it; wait for the lock."""
        lock = self._held()
        try:
            remove_partials(self.root)
            yield
        finally:
            lock.release()

    def _held(self) -> FileLock:
        path, is_waiting = self.root / "filling.lock", False
        while (lock := FileLock.try_hold(path, patience_seconds=1.0)) is None:
            if not is_waiting:
                warnings.warn(f"`{self.root}` is being filled by another process: waiting for it.", stacklevel=4)
            is_waiting = True
        return lock

    def _look(self) -> None:
        """Read the metadata of shards that are new."""
        for path in sorted(self.root.glob("*.safetensors")):
            if path in self._contents:
                continue
            try:
                self._note(path, _contents_of(self._opened(path)))
            except _DAMAGE as error:
                self._drop(path, error)

    def _note(self, path: Path, contents: Mapping[str, _Content]) -> None:
        self._contents[path] = contents
        for key in contents:
            self._shard_of.setdefault(key, path)

    def _check(self, path: Path) -> None:
        file = self._opened(path)
        for key, content in self._contents[path].items():
            if _checksum(_entry(file, key, content)) != content.checksum:
                raise ValueError(f"the checksum of {key} differs")

    def _drop(self, path: Path, error: Exception) -> None:
        if path.is_file():
            warnings.warn(f"`{path}` is damaged and removed ({error}); its features are computed again.", stacklevel=2)
            path.unlink(missing_ok=True)
        self._opened.cache_clear()
        self._contents.pop(path, None)
        self._shard_of = {key: shard for key, shard in self._shard_of.items() if shard != path}


def _contents_of(file: Any) -> Mapping[str, _Content]:
    found = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    if not isinstance(found, dict):
        raise ValueError("it is no shard of features")
    return {key: _Content(tuple(names), int(checksum)) for key, (names, checksum) in found.items()}


def _entry(file: Any, key: str, content: _Content) -> Entry:
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
