"""Collation of samples of any size to one padded, normalised batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vispeft.data.reading.dataset import Sample
from vispeft.errors import DataError
from vispeft.structures import Batch, Targets


def collate(
    samples: Sequence[Sample],
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    image_size: int | None = None,
    size_divisor: int = 1,
) -> Batch:
    """Return one batch of samples, each padded at the right and bottom.

    pixel_mean, pixel_std: pixel statistics of each of the C channels, for values in 0..255
    image_size: pad to this square; None pads to the largest sample
    size_divisor: padded sides are rounded up to a multiple of it
    """
    height, width = _padded_size(samples, image_size, size_divisor)
    mean, std = (torch.tensor(tuple(values), dtype=torch.float32)[:, None, None] for values in (pixel_mean, pixel_std))
    images = torch.zeros(len(samples), len(mean), height, width)
    for image, sample in zip(images, samples, strict=True):
        _, h, w = sample.image.shape
        image[:, :h, :w] = sample.image.to(torch.float32, copy=True).sub_(mean).div_(std)
    targets = tuple(_targets(sample, height, width) for sample in samples)
    return Batch(images, targets, tuple(sample.meta for sample in samples))


def _padded_size(samples: Sequence[Sample], image_size: int | None, size_divisor: int) -> tuple[int, int]:
    largest = [max(sample.image.shape[axis] for sample in samples) for axis in (1, 2)]
    if image_size is not None and max(largest) > image_size:
        raise DataError(f"A sample is {largest[0]}x{largest[1]} pixels, more than `image_size` {image_size}.")
    height, width = (image_size or side for side in largest)
    return -(-height // size_divisor) * size_divisor, -(-width // size_divisor) * size_divisor


def _targets(sample: Sample, height: int, width: int) -> Targets:
    masks = torch.zeros(len(sample.masks), height, width, dtype=torch.bool)
    masks[:, : sample.masks.shape[1], : sample.masks.shape[2]] = sample.masks
    return Targets(sample.labels, _normalised_cxcywh(sample.boxes_xyxy, height, width), masks)


def _normalised_cxcywh(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return torch.cat([(low + high) / 2, high - low], 1) / torch.tensor([width, height, width, height])
