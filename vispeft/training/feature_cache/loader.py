"""Kept features of a frozen prefix in place of images: computed once, stored, and joined into batches.

A draw is an image in one variant of its augmentation. `fill` loads the missing draws as batches of images, runs the
frozen prefix on them and stores features, targets and input size of each draw as an entry. The key of an entry is a
digest of everything that it depends on. `FeatureLoader` then gives the batches of a run from stored entries, with the
same values as without a store.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from vispeft.coco.sets import ImageEntry
from vispeft.data import Draw
from vispeft.data.loading.sampling import Draws
from vispeft.errors import TrainingError
from vispeft.structures import Batch, FeatureBatch, ImageMeta, Targets
from vispeft.training.feature_cache.store import Entry, FeatureStore
from vispeft.training.progress import format_bytes, open_progress
from vispeft.training.seeds import preserved_rng, repeatable

# limits how much is computed again after a crash
SHARD_BYTES = 128 * 2**20


class NoRoomError(TrainingError):
    """Error for features that do not fit into their store; the message is the reason, as a clause."""


@dataclass(frozen=True)
class FillReport:
    """Summary of filling a store. num_bytes: size of the computed entries."""

    num_computed: int = 0
    num_reused: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: FillReport) -> FillReport:
        return FillReport(
            self.num_computed + other.num_computed,
            self.num_reused + other.num_reused,
            self.num_bytes + other.num_bytes,
            self.seconds + other.seconds,
        )


class FeatureLoader:
    """Iterable over batches of stored features; `len` is their number.

    draws: draws of each batch
    key_of: gives the key of a draw's entry in the store
    images: images of the data set, by index
    padded_size: H and W in pixels of the image batches from which the features were computed
    """

    def __init__(
        self,
        store: FeatureStore,
        draws: Draws,
        key_of: Callable[[Draw], str],
        images: Sequence[ImageEntry],
        padded_size: tuple[int, int],
    ) -> None:
        self.store, self.draws, self.key_of = store, draws, key_of
        self.images, self.padded_size = images, padded_size

    def __len__(self) -> int:
        return len(self.draws)

    def __iter__(self) -> Iterator[FeatureBatch]:
        for draws in self.draws:
            entries = [self.store.get(self.key_of(draw)) for draw in draws]
            yield join_entries(entries, [self.images[draw.index] for draw in draws], self.padded_size)

    def needed(self) -> dict[str, Draw]:
        """Return one draw for each key that the batches use."""
        return {self.key_of(draw): draw for draws in self.draws for draw in draws}


def fill(
    store: FeatureStore,
    needed: Mapping[str, Draw],
    *,
    load_batches: Callable[[list[list[Draw]]], Iterable[Batch]],
    prefix: Callable[[Tensor], Sequence[Tensor]],
    batch_size: int,
    bytes_per_image: int,
    device: torch.device,
    description: str,
) -> FillReport:
    """Compute and store the entries of `needed` that are missing from the store.

    load_batches: loads batches of draws; each has exactly `batch_size` images, because results may depend on the size
    prefix: frozen prefix, from images [B, C, H, W] on `device` to features [B, ...]
    bytes_per_image: approximate size of an entry; NoRoomError if the missing entries do not fit into the store
    description: title of the progress bar
    """
    began = time.monotonic()
    num_bytes = 0
    missing = store.missing(needed)
    if missing:
        with store.filling(), preserved_rng(device), repeatable(device):
            # another process may have filled the store in the meantime
            missing = store.missing(missing)
            expected_bytes = len(missing) * bytes_per_image
            _check_room(store, expected_bytes)
            chunks = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
            draws = [_padded([needed[key] for key in chunk], batch_size) for chunk in chunks]
            entries = _compute_entries(chunks, load_batches(draws), prefix, device)
            num_bytes = _store(store, entries, len(missing), f"{description} ({format_bytes(expected_bytes)})")
    return FillReport(len(missing), len(needed) - len(missing), num_bytes, time.monotonic() - began)


def _check_room(store: FeatureStore, wanted: int) -> None:
    room = store.room(wanted)
    if room is not None and wanted > room:
        raise NoRoomError(f"its features take {format_bytes(wanted)}, but there is room for {format_bytes(room)}")


def _padded(draws: list[Draw], batch_size: int) -> list[Draw]:
    """Return a batch of full size, with its first draw repeated at the end."""
    return draws + draws[:1] * (batch_size - len(draws))


@torch.no_grad()
def _compute_entries(
    chunks: Sequence[Sequence[str]],
    batches: Iterable[Batch],
    prefix: Callable[[Tensor], Sequence[Tensor]],
    device: torch.device,
) -> Iterator[tuple[str, Entry]]:
    for keys, batch in zip(chunks, batches, strict=True):
        features = [feature.cpu() for feature in prefix(batch.images.to(device, non_blocking=True))]
        for i, key in enumerate(keys):
            # a slice would keep the whole batch in memory
            yield key, make_entry([feature[i].clone() for feature in features], batch.targets[i], batch.metas[i])


def _store(store: FeatureStore, entries: Iterable[tuple[str, Entry]], total: int, title: str) -> int:
    """Store entries, a shard at a time, and return their bytes. If an exception ends it, those computed are stored."""
    pending: dict[str, Entry] = {}
    pending_bytes = num_bytes = num_done = 0
    try:
        with open_progress(title, total, unit="image") as progress:
            for key, entry in entries:
                pending[key] = entry
                pending_bytes += entry_bytes(entry)
                num_done += 1
                progress.update(num_done)
                if pending_bytes >= SHARD_BYTES:
                    store.put(pending)
                    num_bytes += pending_bytes
                    pending, pending_bytes = {}, 0
    finally:
        if pending:
            store.put(pending)
    return num_bytes + pending_bytes


def make_entry(features: Sequence[Tensor], targets: Targets, meta: ImageMeta) -> Entry:
    """Return the entry of one image: its features [...], its targets with masks as run lengths, its input size."""
    masks = targets.masks.numpy().astype(np.uint8).transpose(1, 2, 0)  # [H, W, T]
    runs = [rle["counts"] for rle in mask_utils.encode(np.asfortranarray(masks))] if len(targets) else []
    return {
        **{f"feature.{i}": feature for i, feature in enumerate(features)},
        "labels": targets.labels,
        "boxes": targets.boxes,
        "mask_runs": torch.from_numpy(np.frombuffer(b"".join(runs), np.uint8).copy()),
        "mask_ends": torch.tensor([len(run) for run in runs], dtype=torch.int64).cumsum(0),
        "frame": torch.tensor([meta.input_height, meta.input_width]),
    }


def join_entries(entries: Sequence[Entry], images: Sequence[ImageEntry], padded_size: tuple[int, int]) -> FeatureBatch:
    """Return entries as one batch. images: the image of each entry"""
    num_features = sum(name.startswith("feature.") for name in entries[0])
    metas = []
    for entry, image in zip(entries, images, strict=True):
        input_height, input_width = entry["frame"].tolist()
        metas.append(ImageMeta(image.id, image.file_name, image.height, image.width, input_height, input_width))
    return FeatureBatch(
        tuple(torch.stack([entry[f"feature.{i}"] for entry in entries]) for i in range(num_features)),
        tuple(
            Targets(entry["labels"].clone(), entry["boxes"].clone(), _masks(entry, padded_size)) for entry in entries
        ),
        tuple(metas),
        padded_size,
    )


def entry_bytes(entry: Entry) -> int:
    """Return the size of an entry's tensors in bytes."""
    return sum(tensor.nbytes for tensor in entry.values())


def _masks(entry: Entry, padded_size: tuple[int, int]) -> Tensor:
    """Return the masks of an entry, [T, H, W] bool."""
    runs, bounds = entry["mask_runs"].numpy().tobytes(), [0, *entry["mask_ends"].tolist()]
    if len(bounds) == 1:
        return torch.zeros(0, *padded_size, dtype=torch.bool)
    rles = [{"size": list(padded_size), "counts": runs[start:end]} for start, end in itertools.pairwise(bounds)]
    return torch.from_numpy(np.ascontiguousarray(mask_utils.decode(rles).transpose(2, 0, 1)).view(bool))
