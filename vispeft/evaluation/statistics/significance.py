"""Intervals and p values of a metric, from its values over resampled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A metric and its interval. resampled_mean: mean over the resamples"""

    value: float
    low: float
    high: float
    resampled_mean: float


def estimate(value: float, samples: NDArray[np.float64], level: float = 0.95, *, least: float = 0.0) -> Estimate:
    """Return the interval of a metric from its resamples [B]; undefined ones (nan) are ignored.

    least: lower bound of the metric; the upper bound is 1
    """
    mean = float(np.nanmean(samples))
    tail = (1 - level) / 2
    lowest, highest = np.nanquantile(samples, [tail, 1 - tail]) - mean
    low, high = np.clip([value - highest, value - lowest], least, 1.0)
    return Estimate(float(value), float(low), float(high), mean)


def p_value(difference: float, samples: NDArray[np.float64], num_images: int) -> float:
    """Return the two-sided p value of a difference: the probability of a difference at least as large by chance.

    samples: [B] resampled differences
    """
    deviations = samples[~np.isnan(samples)]
    deviations = np.abs(deviations - deviations.mean())
    # differences that are equal but for rounding count too
    num_larger = int((deviations >= abs(difference) - 1e-12).sum())
    return max((1 + num_larger) / (1 + len(deviations)), least_p(num_images))


def least_p(num_images: int) -> float:
    """Return the smallest possible p value: the probability that all images agree by chance (sign test)."""
    return 2.0 ** (1 - num_images)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple tests (Holm, A simple sequentially rejective multiple test procedure, 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected
