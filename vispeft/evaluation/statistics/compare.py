"""Bootstrap comparison of configurations by AP: differences to the best, their significance, and the cheapest equal.

Images of the validation set are resampled with replacement, with the same drawing for every configuration, so that
comparisons are paired. Seeds of a configuration that was trained with several seeds are resampled too, independently
for each configuration. Training sets, and the seeds of a configuration that was trained once, are not resampled.

Intervals and p values come from the deviations of the resamples from their own mean (Davison and Hinkley, Bootstrap
Methods and Their Application, 1997, sections 4.4 and 5.2). Resampling itself raises AP a little, since interpolation
takes the best of coarser curves; the reported value is the AP of sets of this size, which has no such shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vispeft.errors import DataError
from vispeft.evaluation.statistics.bootstrap import METRICS, Records, plain_ap, resample_images, weighted_ap

DEFAULT_RESAMPLES = 1000
# resamples for each comparison, so that the smallest p value survives Holm's correction
_PER_COMPARISON = 50


@dataclass(frozen=True)
class Entry:
    """A configuration in a comparison. runs: one per training seed, all on the same images

    trainable_params: its cost; None if unknown
    """

    name: str
    runs: tuple[Records, ...]
    trainable_params: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A metric and its interval. resampled_mean: mean over the resamples"""

    value: float
    low: float
    high: float
    resampled_mean: float


@dataclass(frozen=True)
class Standing:
    """Result of one configuration in a comparison.

    figure: the metric, mean over its seeds
    seed_figures: the metric of each run
    difference: metric minus that of the best; None for the best itself
    p_value: two-sided, of no difference to the best; corrected_p: the same after Holm's correction
    is_distinguishable: whether the corrected p is below 1 - level
    best_share: the share of resamples in which it has the highest metric
    """

    name: str
    figure: Estimate
    seed_figures: tuple[float, ...]
    difference: Estimate | None
    p_value: float | None
    corrected_p: float | None
    is_distinguishable: bool
    best_share: float
    trainable_params: float | None


@dataclass(frozen=True)
class Comparison:
    """Configurations compared with the best of them.

    standings: in the order given
    level: of all intervals
    best: the name of the configuration with the highest metric
    equals: the names of those that are not distinguishable from it: the best itself, then by falling metric
    cheapest: of those, the one with the fewest trainable parameters; None where these are unknown
    sentence: the conclusion
    notes: limits of the conclusion, one sentence each
    """

    metric: str
    num_images: int
    num_resamples: int
    level: float
    standings: tuple[Standing, ...]
    best: str
    equals: tuple[str, ...]
    cheapest: str | None
    sentence: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as values for JSON."""
        return asdict(self)


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
    num_resamples: 1,000, or 50 per comparison if that is more, unless given
    seed: of the resampling
    """
    _check(entries, metric, num_resamples)
    num_resamples = num_resamples or max(DEFAULT_RESAMPLES, _PER_COMPARISON * (len(entries) - 1))
    generator = np.random.default_rng(seed)
    num_images = entries[0].runs[0].num_images
    weights = resample_images(num_images, num_resamples, generator)
    seed_figures = [tuple(plain_ap(run, metric) for run in entry.runs) for entry in entries]
    if np.isnan(seed_figures[0][0]):
        raise DataError("The annotations hold no object to be found, so that AP is undefined and nothing compares.")
    samples = np.stack([_resampled(entry, weights, metric, generator) for entry in entries])  # [entries, B]
    values = np.array([np.mean(figures) for figures in seed_figures])
    best = min(range(len(entries)), key=lambda index: (-values[index], entries[index].trainable_params or 0, index))
    differences, difference_samples = values - values[best], samples - samples[best]
    tested = _tested(differences, difference_samples, best, num_images)
    shares = _best_shares(samples)
    standings = tuple(
        Standing(
            name=entry.name,
            figure=estimate(values[index], samples[index], level),
            seed_figures=seed_figures[index],
            difference=None
            if index == best
            else estimate(differences[index], difference_samples[index], level, least=-1.0),
            p_value=None if index == best else tested[index][0],
            corrected_p=None if index == best else tested[index][1],
            is_distinguishable=tested[index][1] < 1 - level,
            best_share=shares[index],
            trainable_params=entry.trainable_params,
        )
        for index, entry in enumerate(entries)
    )
    return _concluded(standings, best, metric, num_images, num_resamples, level)


def estimate_ap(
    runs: Sequence[Records], *, metric: str = "AP", num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Return the AP of one configuration, mean over its seeds, with its interval."""
    return (
        compare([Entry("", tuple(runs))], metric=metric, num_resamples=num_resamples, seed=seed, level=level)
        .standings[0]
        .figure
    )


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
    """Return the two-sided p value of a difference: the probability of one at least as large if there were none.

    samples: [B] resampled differences
    """
    deviations = samples[~np.isnan(samples)]
    deviations = np.abs(deviations - deviations.mean())
    # equal ones count, rounding aside
    num_larger = int((deviations >= abs(difference) - 1e-12).sum())
    return max((1 + num_larger) / (1 + len(deviations)), _least_p(num_images))


def _least_p(num_images: int) -> float:
    """Return the least possible p: the probability that all images agree on the better one by chance (sign test)."""
    return 2.0 ** (1 - num_images)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm, A simple sequentially rejective multiple test procedure, 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def _check(entries: Sequence[Entry], metric: str, num_resamples: int | None) -> None:
    """Raise a DataError if the entries cannot be compared."""
    if metric not in METRICS:
        raise DataError(f"`metric` must be one of {', '.join(METRICS)}, but is {metric!r}.")
    if num_resamples is not None and num_resamples < 100:
        raise DataError(f"`num_resamples` must be at least 100, but is {num_resamples}.")
    if not entries or not all(entry.runs for entry in entries):
        raise DataError("A comparison needs at least one configuration, and each of them at least one run.")
    first = entries[0].runs[0].num_objects
    for entry in entries:
        if not all(np.array_equal(run.num_objects, first) for run in entry.runs):
            raise DataError(f"`{entry.name}` was not scored on the objects that `{entries[0].name}` was scored on.")


def _resampled(
    entry: Entry, weights: NDArray[np.int64], metric: str, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the AP of a configuration over resampled images and seeds: [B].

    Of S seeds, S are drawn with replacement. That gives (S - 1) / S of their variance, so that deviations from the mean
    over all seeds are scaled by sqrt(S / (S - 1)).
    """
    by_seed = np.stack([weighted_ap(run, weights, metric) for run in entry.runs])  # [S, B]
    num_seeds = len(by_seed)
    mean: NDArray[np.float64] = by_seed.mean(axis=0)
    if num_seeds == 1:
        return mean
    drawn = resample_images(num_seeds, by_seed.shape[1], generator).T / num_seeds
    mean += np.sqrt(num_seeds / (num_seeds - 1)) * ((drawn * by_seed).sum(axis=0) - mean)
    return mean


def _tested(
    differences: NDArray[np.float64], samples: NDArray[np.float64], best: int, num_images: int
) -> list[tuple[float, float]]:
    """Return the p value of each difference to the best, and the corrected p value; 1 for the best itself.

    differences: [entries]; samples: [entries, B]
    """
    plain = [p_value(differences[index], samples[index], num_images) for index in range(len(differences))]
    corrected = holm(plain[:best] + plain[best + 1 :])
    corrected.insert(best, 1.0)
    return list(zip(plain, corrected, strict=True))


def _best_shares(samples: NDArray[np.float64]) -> list[float]:
    """Return the share of resamples in which each entry is the best; ties are split. samples: [entries, B]."""
    defined = samples[:, ~np.isnan(samples).any(axis=0)]
    is_first = defined == defined.max(axis=0, initial=-np.inf)
    shares: list[float] = (is_first / np.maximum(is_first.sum(axis=0), 1)).mean(axis=1).tolist()
    return shares


def _concluded(
    standings: tuple[Standing, ...], best: int, metric: str, num_images: int, num_resamples: int, level: float
) -> Comparison:
    """Return the comparison with its conclusion."""
    ranked = sorted(standings, key=lambda one: (one is not standings[best], -one.figure.value))
    equals = [one for one in ranked if not one.is_distinguishable]
    costs = [one.trainable_params for one in equals]
    limits = _limits(len(standings) - 1, num_images, num_resamples, level)
    is_open = None in costs or bool(limits)
    cheapest = None if is_open else min(equals, key=lambda one: one.trainable_params or 0.0).name
    return Comparison(
        metric=metric,
        num_images=num_images,
        num_resamples=num_resamples,
        level=level,
        standings=standings,
        best=standings[best].name,
        equals=tuple(one.name for one in equals),
        cheapest=cheapest,
        sentence=_sentence(ranked, equals, cheapest, metric, level, [what for what, _ in limits]),
        notes=(*_notes(standings, num_images), *(f"{what}: {why}" for what, why in limits)),
    )


def _limits(num_others: int, num_images: int, num_resamples: int, level: float) -> list[tuple[str, str]]:
    """Return the causes, with reasons, for which no difference could reach significance; empty if one could."""
    return [
        (
            f"{number} {what} cannot tell {num_others + 1} configurations apart",
            f"no corrected p can be below {min(1.0, num_others * least):.2g}. Take more {what}.",
        )
        for least, number, what in (
            (1 / (1 + num_resamples), num_resamples, "resamples"),
            (_least_p(num_images), num_images, "images"),
        )
        if num_others * least >= 1 - level
    ]


def _notes(standings: Sequence[Standing], num_images: int) -> list[str]:
    notes = []
    if num_images < 20:
        few = "1 image is" if num_images == 1 else f"{num_images} images are"
        notes.append(f"{few} few to resample: the intervals are rough, and rather too narrow.")
    if any(len(one.seed_figures) == 1 for one in standings):
        notes.append("A configuration that was trained once shows nothing of how much its figure varies with the seed.")
    return notes


def _sentence(
    ranked: Sequence[Standing],
    equals: Sequence[Standing],
    cheapest: str | None,
    metric: str,
    level: float,
    limits: Sequence[str],
) -> str:
    best, others = ranked[0], equals[1:]
    interval = f"{round(100 * level)} % interval {best.figure.low:.3f} to {best.figure.high:.3f}"
    first = f"{best.name} has the highest {metric}, {best.figure.value:.3f} ({interval})"
    if len(ranked) == 1:
        return f"{first}."
    if limits:
        return f"{first}, but {limits[0]}."
    if not others:
        return f"{first}, and every other configuration is distinguishable from it."
    names = ", ".join(one.name for one in others)
    if len(equals) == len(ranked):
        found = f"{first}, but none of the others is distinguishable from it: {names}."
    else:
        found = f"{first}; not distinguishable from it: {names}."
    if cheapest is None:
        return found
    cost = next(one.trainable_params for one in equals if one.name == cheapest)
    return f"{found} The cheapest of these {len(equals)} is {cheapest}, with {cost:,.0f} trainable parameters."
