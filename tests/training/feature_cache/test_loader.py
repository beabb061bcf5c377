"""Images become entries, entries become batches: the same targets, the same frames, each computed once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vispeft.coco.sets import ImageEntry
from vispeft.data import Draw
from vispeft.structures import Batch, ImageMeta, Targets
from vispeft.training.feature_cache.loader import (
    FeatureLoader,
    FillReport,
    NoRoomError,
    entry_bytes,
    fill,
    join_entries,
    make_entry,
)
from vispeft.training.feature_cache.store import DirectoryStore, FeatureMemory

SIZE = (24, 40)
CPU = torch.device("cpu")


def image_entry(index: int) -> ImageEntry:
    return ImageEntry(index + 1, f"{index}.jpg", Path(f"{index}.jpg"), 100 + index, 80)


def sample(index: int, variant: int) -> tuple[Tensor, Targets, ImageMeta]:
    generator = torch.Generator().manual_seed(100 * index + variant)
    count = index % 3
    masks = torch.rand(count, *SIZE, generator=generator) > 0.6
    masks[:1] = False
    targets = Targets(torch.arange(count), torch.rand(count, 4, generator=generator), masks)
    entry = image_entry(index)
    meta = ImageMeta(entry.id, entry.file_name, entry.height, entry.width, 20 + variant, 33)
    return torch.randn(3, *SIZE, generator=generator), targets, meta


class Source:
    """Loads batches of draws and counts them."""

    def __init__(self) -> None:
        self.loaded: list[list[Draw]] = []

    def __call__(self, batches: list[list[Draw]]) -> Iterator[Batch]:
        for draws in batches:
            self.loaded.append(draws)
            images, targets, metas = zip(*(sample(draw.index, draw.number) for draw in draws), strict=True)
            yield Batch(torch.stack(images), targets, metas)


def prefix(images: Tensor) -> list[Tensor]:
    return [images.mean(1).to(torch.bfloat16), images.flatten(1)[:, :7]]


def key_of(draw: Draw) -> str:
    return f"{draw.index}-{draw.number}"


@pytest.fixture
def filled() -> Callable[..., tuple[FeatureLoader, Source, FillReport]]:
    memory = FeatureMemory()

    def make(draws: list[list[Draw]], bytes_per_image: int = 10) -> tuple[FeatureLoader, Source, FillReport]:
        source, store = Source(), memory.store("prefix")
        loader = FeatureLoader(store, draws, key_of, [image_entry(index) for index in range(9)], SIZE)
        report = fill(
            store,
            loader.needed(),
            load_batches=source,
            prefix=prefix,
            batch_size=2,
            bytes_per_image=bytes_per_image,
            device=CPU,
            description="features",
        )
        return loader, source, report

    return make


def assert_is(batches: Iterable[object], draws: list[list[Draw]]) -> None:
    for batch, wanted in zip(batches, Source()(draws), strict=True):
        features = prefix(wanted.images)
        assert all(torch.equal(one, other) for one, other in zip(batch.inputs, features, strict=True))  # type: ignore[attr-defined]
        assert batch.metas == wanted.metas  # type: ignore[attr-defined]
        assert batch.padded_size == wanted.padded_size == SIZE  # type: ignore[attr-defined]
        for one, other in zip(batch.targets, wanted.targets, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.boxes, other.boxes)
            assert one.masks.dtype == torch.bool
            assert torch.equal(one.masks, other.masks)
            assert one.masks.is_contiguous()


def test_fill__computes_each_image_once(filled: Callable[..., tuple[FeatureLoader, Source, FillReport]]) -> None:
    draws = [[Draw(0, 0), Draw(1, 0)], [Draw(2, 1), Draw(0, 0)], [Draw(1, 1), Draw(2, 1)]]
    loader, source, report = filled(draws)
    # in batches of one size: the last is filled up by its own first image
    assert source.loaded == [[Draw(0, 0), Draw(1, 0)], [Draw(2, 1), Draw(1, 1)]]
    assert (report.num_computed, report.num_reused) == (4, 0)
    assert report.num_bytes == sum(entry_bytes(loader.store.get(key)) for key in loader.needed())
    assert len(loader) == 3
    assert_is(loader, draws)
    assert_is(loader, draws)
    _, source, report = filled([[Draw(1, 1), Draw(5, 0)]])
    assert source.loaded == [[Draw(5, 0), Draw(5, 0)]]
    assert (report.num_computed, report.num_reused) == (1, 1)


def test_fill__says_what_there_is_no_room_for(
    filled: Callable[..., tuple[FeatureLoader, Source, FillReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vispeft.training.feature_cache.store.available_memory_bytes", lambda: 50 * 2**20)
    with pytest.raises(NoRoomError, match="its features take 60 MB, but there is room for 40 MB"):
        filled([[Draw(0), Draw(1)]], bytes_per_image=30 * 2**20)


def test_fill__keeps_what_it_has_when_it_is_stopped() -> None:
    store = FeatureMemory().store("prefix")

    def stopped(batches: list[list[Draw]]) -> Iterator[Batch]:
        yield from Source()(batches[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(
            store,
            {key_of(Draw(index)): Draw(index) for index in range(4)},
            load_batches=stopped,
            prefix=prefix,
            batch_size=2,
            bytes_per_image=1,
            device=CPU,
            description="features",
        )
    assert store.missing(["0-0", "1-0", "2-0"]) == ["2-0"]


def test_fill__leaves_no_trace_in_what_is_drawn(
    filled: Callable[..., tuple[FeatureLoader, Source, FillReport]],
) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    filled([[Draw(0), Draw(1)]])
    assert torch.equal(torch.rand(3), wanted)


def test_make_entry__is_undone_by_join_entries() -> None:
    image, targets, meta = sample(4, 3)
    batch = join_entries([make_entry([image], targets, meta)], [image_entry(4)], SIZE)
    assert torch.equal(batch.features[0][0], image)
    assert torch.equal(batch.targets[0].masks, targets.masks)
    assert batch.metas == (meta,)


FILLING = """
import sys, time
from pathlib import Path
import torch
from vispeft.data import Draw
from vispeft.structures import Batch, ImageMeta, Targets
from vispeft.training.feature_cache.store import DirectoryStore
from vispeft.training.feature_cache.loader import fill

def load_batches(batches):
    for draws in batches:
        time.sleep(0.05)
        images = torch.stack([torch.full((3, 8, 8), float(draw.index)) for draw in draws])
        nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 8, 8, dtype=torch.bool))
        yield Batch(images, (nothing,) * len(draws), (ImageMeta(1, "a.jpg", 8, 8, 8, 8),) * len(draws))

print("ready", flush=True)
sys.stdin.readline()
store = DirectoryStore(Path(sys.argv[1]))
first = int(sys.argv[2])
needed = {str(index): Draw(index) for index in range(first, first + 8)}
report = fill(
    store, needed, load_batches=load_batches, prefix=lambda images: [images.mean(1)], batch_size=2, bytes_per_image=256,
    device=torch.device("cpu"), description="features",
)
assert all(float(store.get(key)["feature.0"].mean()) == float(key) for key in needed)
print(report.num_computed, flush=True)
"""


@pytest.mark.slow
def test_fill__two_processes_compute_nothing_twice(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", FILLING, str(tmp_path / "features"), first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in ("0", "4")
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    computed = [int(worker.communicate()[0]) for worker in workers]
    # 8 images each, of which they share 4
    assert sum(computed) == 12
    assert DirectoryStore(tmp_path / "features").missing(str(index) for index in range(12)) == []
