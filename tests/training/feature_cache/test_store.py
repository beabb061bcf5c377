"""What was kept comes back to the bit or not at all."""

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vispeft.errors import TrainingError
from vispeft.training.feature_cache.store import DirectoryStore, Entry, FeatureMemory, FeatureStore

DiskUsage = namedtuple("DiskUsage", "total used free")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def entry(seed: int) -> Entry:
    generator = torch.Generator().manual_seed(seed)
    return {
        "feature.0": torch.randn(3, 5, generator=generator).to(DTYPES[seed % 3]),
        "labels": torch.arange(seed),
        "mask_runs": torch.tensor([], dtype=torch.uint8),
    }


def equal(one: Entry, other: Entry) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return DirectoryStore(tmp_path / "features") if request.param == "directory" else FeatureMemory().store("prefix")


def test_store__gives_back_what_was_put(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.missing(["a", "b", "a"]) == ["a", "b"]
    with store.filling():
        store.put({"a": entry(0), "b": entry(1)})
        store.put({"c": entry(2)})
    assert store.missing(["c", "d", "a"]) == ["d"]
    assert all(equal(store.get(key), entry(seed)) for seed, key in enumerate("abc"))
    monkeypatch.setattr("vispeft.training.feature_cache.store.available_memory_bytes", lambda: 1_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: DiskUsage(total=5_000, used=4_000, free=1_000))
    assert store.room(1) == (900 if isinstance(store, DirectoryStore) else 800)


def test_memory_store__has_no_bound_where_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vispeft.training.feature_cache.store.available_memory_bytes", lambda: None)
    assert FeatureMemory().store("prefix").room(10**15) is None


def test_directory_store__is_found_again_and_shared(tmp_path: Path) -> None:
    first, second = DirectoryStore(tmp_path), DirectoryStore(tmp_path)
    first.put({"a": entry(0)})
    assert second.missing(["a", "b"]) == ["b"]
    second.put({"b": entry(1)})
    assert first.missing(["a", "b"]) == []
    assert equal(first.get("b"), entry(1))
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


def of_another_kind(path: Path) -> None:
    save_file({"x": torch.ones(2)}, path)


def with_a_damaged_header(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors, path, metadata={"vispeft_features": json.dumps({"b": 3})})


def without_a_tensor(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("labels")}
    save_file(tensors, path, metadata=metadata)


DAMAGES: list[Any] = [
    *(cut_off, emptied, with_a_flipped_bit),
    *(of_another_kind, with_a_damaged_header, without_a_tensor),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_directory_store__does_not_trust_a_damaged_shard(tmp_path: Path, damage: Any) -> None:
    store = DirectoryStore(tmp_path)
    store.put({"a": entry(0)})
    whole = set(tmp_path.iterdir())
    store.put({"b": entry(4)})
    (shard,) = set(tmp_path.iterdir()) - whole
    damage(shard)
    again = DirectoryStore(tmp_path)
    with pytest.warns(UserWarning, match="is damaged and was removed"):
        assert again.missing(["a", "b"]) == ["b"]
    assert not shard.exists()
    again.put({"b": entry(4)})
    assert DirectoryStore(tmp_path).missing(["a", "b"]) == []
    assert equal(again.get("a"), entry(0))
    assert equal(again.get("b"), entry(4))


def test_directory_store__says_when_a_shard_is_taken_away(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).put({"a": entry(0)})
    store = DirectoryStore(tmp_path)
    store._register(tmp_path / "gone.safetensors", {"b": store_content()})
    with pytest.raises(TrainingError, match="must stay unchanged while a run uses it"):
        store.get("b")


def store_content() -> Any:
    from vispeft.training.feature_cache.store import _Content

    return _Content(("labels",), 0)


def test_directory_store__clears_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / ".0123.safetensors.77.partial"
    left.write_bytes(b"half")
    store = DirectoryStore(tmp_path)
    assert store.missing(["a"]) == ["a"]
    with store.filling():
        assert not left.exists()


def test_feature_memory__makes_room_by_what_was_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FeatureMemory()
    for name in ("old", "older"):
        memory.begin_run()
        memory.store(name).put({"a": entry(1)})
    memory.begin_run()
    # used again: now the other one is the older
    memory.store("old")
    memory.begin_run()
    store, other = memory.store("new"), memory.store("new, other batch size")
    other.put({"a": entry(1)})
    free = iter([10, 50])
    monkeypatch.setattr("vispeft.training.feature_cache.store.available_memory_bytes", lambda: next(free))
    assert store.room(30) == 40
    assert memory.store("old").missing(["a"]) == []
    assert memory.store("older").missing(["a"]) == ["a"]
    assert other.missing(["a"]) == []


def test_feature_memory__keeps_what_the_run_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FeatureMemory()
    train, val = memory.store("train"), memory.store("val")
    train.put({"a": entry(1)})
    monkeypatch.setattr("vispeft.training.feature_cache.store.available_memory_bytes", lambda: 10)
    assert val.room(30) == 8
    assert train.missing(["a"]) == []
