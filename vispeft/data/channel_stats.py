"""Mean and standard deviation of each channel of a data set's images, for `model.pixel_mean` and `model.pixel_std`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vispeft.coco.sets import CocoSet
from vispeft.data.reading.channels import read_image
from vispeft.errors import DataError


@dataclass(frozen=True)
class ChannelStats:
    """Statistics of C channels, in 0..255 as networks get them before normalisation."""

    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


def channel_stats(coco_set: CocoSet, num_channels: int) -> ChannelStats:
    """Return the statistics over all pixels of a set. Raises `DataError` for an image that cannot be read."""
    sums, squares, count = np.zeros(num_channels), np.zeros(num_channels), 0
    for entry in coco_set.images:
        if entry.path is None:
            raise DataError("Statistics of channels need the image folder: give --images.")
        pixels = read_image(entry.path, num_channels).pixels
        for channel in range(num_channels):
            values = pixels[:, :, channel].astype(np.float64)
            sums[channel] += values.sum()
            squares[channel] += np.square(values).sum()
        count += pixels.shape[0] * pixels.shape[1]
    mean = sums / count
    # a constant channel would be divided by zero
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return ChannelStats(tuple(round(v, 3) for v in mean.tolist()), tuple(round(v, 3) for v in std.tolist()))


def format_channel_stats(stats: ChannelStats) -> str:
    """Return the statistics as configuration keys."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (stats.pixel_mean, stats.pixel_std))
    return f"model.pixel_mean=[{mean}]\nmodel.pixel_std=[{std}]"
