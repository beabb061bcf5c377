"""Bootstrap comparison of configurations by AP: differences to the best, significance, and the cheapest of the equals.

Images of the validation set are resampled with replacement, with the same draws for every configuration, so that
comparisons are paired. The seeds of a configuration that was trained with several seeds are resampled too,
independently for each configuration. Training sets, and the seeds of a configuration that was trained once, are not
resampled.

Intervals and p values come from the deviations of the resamples from their own mean (Davison and Hinkley, Bootstrap
Methods and Their Application, 1997, sections 4.4 and 5.2). Resampling itself raises AP a little, since interpolation
takes the best of coarser curves; the reported value is the AP of sets of this size, which has no such shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vispeft.errors import DataError
from vispeft.evaluation.statistics.bootstrap import METRICS, Records, plain_ap, resample_images, weighted_ap
from vispeft.evaluation.statistics.conclusion import Comparison, Result, Setting, conclude
from vispeft.evaluation.statistics.significance import Estimate, estimate, holm, p_value

DEFAULT_RESAMPLES = 1000
# resamples per comparison, so that the smallest p value stays significant after Holm's correction
_PER_COMPARISON = 50


@dataclass(frozen=True)
class Entry:
    """A configuration to compare.

    runs: one per training seed, all on the same images
    trainable_params: cost of the configuration; None if unknown
    """

    name: str
    runs: tuple[Records, ...]
    trainable_params: float | None = None


def compare(
    entries: Sequence[Entry],
    *,
    metric: str = "AP",
    num_resamples: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare every configuration with the best one.

    metric: AP, AP50 or AP75
    num_resamples: None for 1,000, or 50 per comparison if that is more
    seed: seed of the resampling
    level: level of all intervals
    """
    _check(entries, metric, num_resamples)
    num_resamples = num_resamples or max(DEFAULT_RESAMPLES, _PER_COMPARISON * (len(entries) - 1))
    generator = np.random.default_rng(seed)
    num_images = entries[0].runs[0].num_images
    weights = resample_images(num_images, num_resamples, generator)
    seed_values = [tuple(plain_ap(run, metric) for run in entry.runs) for entry in entries]
    if np.isnan(seed_values[0][0]):
        raise DataError("The annotations contain no object to detect, so that AP is undefined.")
    samples = np.stack([_resampled(entry, weights, metric, generator) for entry in entries])  # [entries, B]
    values = np.array([np.mean(of_seeds) for of_seeds in seed_values])
    best = min(range(len(entries)), key=lambda index: (-values[index], entries[index].trainable_params or 0, index))
    setting = Setting(metric, num_images, num_resamples, level)
    results = _results(entries, seed_values, values, samples, best, setting)
    return conclude(results, best, setting)


def estimate_ap(
    runs: Sequence[Records], *, metric: str = "AP", num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Return the AP of one configuration, mean over its seeds, with its interval."""
    entries = [Entry("", tuple(runs))]
    return compare(entries, metric=metric, num_resamples=num_resamples, seed=seed, level=level).results[0].estimate


def _check(entries: Sequence[Entry], metric: str, num_resamples: int | None) -> None:
    """Raise a DataError if the entries cannot be compared."""
    if metric not in METRICS:
        raise DataError(f"`metric` must be one of {', '.join(METRICS)}, but is {metric!r}.")
    if num_resamples is not None and num_resamples < 100:
        raise DataError(f"`num_resamples` must be at least 100, but is {num_resamples}.")
    if not entries or not all(entry.runs for entry in entries):
        raise DataError("A comparison needs at least one configuration, and every configuration at least one run.")
    first = entries[0].runs[0].num_objects
    for entry in entries:
        if not all(np.array_equal(run.num_objects, first) for run in entry.runs):
            raise DataError(
                f"`{entry.name}` was not scored on the same objects as `{entries[0].name}`. Score both on the same "
                "annotations."
            )


def _resampled(
    entry: Entry, weights: NDArray[np.int64], metric: str, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the AP of a configuration over resampled images and seeds: [B].

    S of S seeds are drawn with replacement. The variance of such a mean is too small by the factor (S - 1) / S, so that
    deviations from the mean over all seeds are scaled by sqrt(S / (S - 1)).
    """
    by_seed = np.stack([weighted_ap(run, weights, metric) for run in entry.runs])  # [S, B]
    num_seeds = len(by_seed)
    mean: NDArray[np.float64] = by_seed.mean(axis=0)
    if num_seeds == 1:
        return mean
    drawn = resample_images(num_seeds, by_seed.shape[1], generator).T / num_seeds
    mean += np.sqrt(num_seeds / (num_seeds - 1)) * ((drawn * by_seed).sum(axis=0) - mean)
    return mean


def _results(
    entries: Sequence[Entry],
    seed_values: Sequence[tuple[float, ...]],
    values: NDArray[np.float64],
    samples: NDArray[np.float64],
    best: int,
    setting: Setting,
) -> tuple[Result, ...]:
    """Return the result of each entry. values: [entries], means over seeds; samples: [entries, B]."""
    differences, difference_samples = values - values[best], samples - samples[best]
    p_values = [p_value(differences[i], difference_samples[i], setting.num_images) for i in range(len(entries))]
    corrected = holm(p_values[:best] + p_values[best + 1 :])
    # the best is not compared with itself
    corrected.insert(best, 1.0)
    best_shares = _best_shares(samples)
    level = setting.level
    return tuple(
        Result(
            name=entry.name,
            estimate=estimate(values[i], samples[i], level),
            seed_values=seed_values[i],
            difference=None if i == best else estimate(differences[i], difference_samples[i], level, least=-1.0),
            p_value=None if i == best else p_values[i],
            corrected_p=None if i == best else corrected[i],
            is_distinguishable=corrected[i] < 1 - level,
            best_share=best_shares[i],
            trainable_params=entry.trainable_params,
        )
        for i, entry in enumerate(entries)
    )


def _best_shares(samples: NDArray[np.float64]) -> list[float]:
    """Return the share of resamples in which each entry is the best; ties are split. samples: [entries, B]"""
    defined = samples[:, ~np.isnan(samples).any(axis=0)]
    is_first = defined == defined.max(axis=0, initial=-np.inf)
    shares: list[float] = (is_first / np.maximum(is_first.sum(axis=0), 1)).mean(axis=1).tolist()
    return shares
