"""Data set of samples at network size from a COCO set, reproducible bit by bit for a seed and a draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vispeft.coco.sets import CocoSet, ImageEntry
from vispeft.data.reading.channels import RGB, read_image
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.augmentation import Example, TileTransform, TrainTransform, Transform
from vispeft.data.transforms.copy_paste import paste
from vispeft.errors import DataError
from vispeft.structures import ImageMeta, Window

CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Draw:
    """One use of an image. index: in the set; number: of the augmentation."""

    index: int
    number: int = 0


@dataclass(frozen=True)
class Sample:
    """One network input before padding.

    image: [C, h, w] uint8, RGB for three, or float32 in 0..255
    labels: [T] int64; boxes_xyxy: [T, 4] float32 in pixels of `image`; masks: [T, h, w] bool
    """

    image: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    masks: Tensor
    meta: ImageMeta


class InstanceDataset(Dataset[Sample]):
    """Samples of a `CocoSet`. A sample depends only on `seed`, its index and its draw number.

    transform: with a `TileTransform`, the draw number is that of the tile
    cache_bytes: decoded pictures are kept up to this many bytes in each process
    num_channels: channels C of the images
    copy_paste: probability that instances of another image are pasted; with a `TrainTransform` alone
    """

    def __init__(
        self,
        coco_set: CocoSet,
        transform: Transform | TileTransform,
        *,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
        num_channels: int = RGB,
        copy_paste: float = 0.0,
    ) -> None:
        self.coco_set = coco_set
        self.transform = transform
        self.seed = seed
        self.cache_bytes = cache_bytes
        self.num_channels = num_channels
        self.copy_paste = copy_paste
        self._cache: dict[int, Picture] = {}
        self._cached_bytes = 0
        self._latest: tuple[int, Picture] | None = None

    def __len__(self) -> int:
        return len(self.coco_set)

    def __getitem__(self, key: int | Draw) -> Sample:
        draw = key if isinstance(key, Draw) else Draw(range(len(self))[key])
        entry = self.coco_set.images[draw.index]
        if isinstance(self.transform, TileTransform):
            return self._tile(self.transform, draw, entry)
        rng = np.random.default_rng((self.seed, draw.number, draw.index))
        example = self._example(self.transform, draw.index, rng)
        if isinstance(self.transform, TrainTransform) and rng.random() < self.copy_paste and len(self) > 1:
            source = self._example(self.transform, (draw.index + int(rng.integers(1, len(self)))) % len(self), rng)
            example = paste(example, source, rng, min_pixels=self.transform.min_pixels)
        height, width = example.image.shape[1:]
        meta = ImageMeta(entry.id, entry.file_name, entry.height, entry.width, height, width)
        return Sample(example.image, example.labels, example.boxes_xyxy, example.masks, meta)

    def _example(self, transform: Transform, index: int, rng: np.random.Generator) -> Example:
        entry = self.coco_set.images[index]
        return transform(self._picture(index), self.coco_set.annotations[index], entry.height, entry.width, rng)

    def _tile(self, transform: TileTransform, draw: Draw, entry: ImageEntry) -> Sample:
        tiles = transform.tiling.tiles(entry.height, entry.width)
        tile = tiles[draw.number]
        example = transform(self._picture(draw.index), self.coco_set.annotations[draw.index], tile)
        height, width = example.image.shape[1:]
        window = Window(tile.left, tile.top, entry.height, entry.width, len(tiles))
        sides = tile.bottom - tile.top, tile.right - tile.left
        meta = ImageMeta(entry.id, entry.file_name, *sides, height, width, window)
        return Sample(example.image, example.labels, example.boxes_xyxy, example.masks, meta)

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the cache, so that worker processes start with an empty one."""
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0, "_latest": None}

    def _picture(self, index: int) -> Picture:
        if index in self._cache:
            return self._cache[index]
        if self._latest is not None and self._latest[0] == index:
            return self._latest[1]
        path = self.coco_set.images[index].path
        if path is None:
            raise DataError("The set was read without an image folder; pass `images` to `read_coco`.")
        picture = read_image(path, self.num_channels, long_side=self.transform.longest_needed)
        if self._cached_bytes + picture.pixels.nbytes <= self.cache_bytes:
            self._cache[index] = picture
            self._cached_bytes += picture.pixels.nbytes
        elif isinstance(self.transform, TileTransform):
            # its other tiles follow
            self._latest = (index, picture)
        return picture
