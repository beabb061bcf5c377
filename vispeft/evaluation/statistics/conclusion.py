"""Results of a comparison, and its conclusion in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vispeft.evaluation.statistics.significance import Estimate, least_p


@dataclass(frozen=True)
class Setting:
    """Metric and resampling of a comparison. level: level of all intervals"""

    metric: str
    num_images: int
    num_resamples: int
    level: float


@dataclass(frozen=True)
class Result:
    """Result of one configuration in a comparison.

    estimate: the metric, mean over the seeds
    seed_values: the metric of each run
    difference: the metric minus that of the best configuration; None for the best itself
    p_value: two-sided p value of the difference to the best
    corrected_p: the p value after Holm's correction
    is_distinguishable: True if the corrected p value is below 1 - level
    best_share: share of resamples in which this configuration has the highest metric
    """

    name: str
    estimate: Estimate
    seed_values: tuple[float, ...]
    difference: Estimate | None
    p_value: float | None
    corrected_p: float | None
    is_distinguishable: bool
    best_share: float
    trainable_params: float | None


@dataclass(frozen=True)
class Comparison:
    """Configurations compared with the best of them.

    results: results in the order of the entries
    level: level of all intervals
    best: name of the configuration with the highest metric
    equals: names of the configurations that are not distinguishable from the best, by falling metric, with the best
    cheapest: name of the one among `equals` with the fewest trainable parameters; None if these are unknown
    sentence: the conclusion
    notes: limits of the conclusion, one sentence each
    """

    metric: str
    num_images: int
    num_resamples: int
    level: float
    results: tuple[Result, ...]
    best: str
    equals: tuple[str, ...]
    cheapest: str | None
    sentence: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Limit:
    """A reason why no difference can be significant. text: a clause for the conclusion; reason: cause and remedy"""

    text: str
    reason: str


def conclude(results: tuple[Result, ...], best: int, setting: Setting) -> Comparison:
    """Return the comparison with its conclusion."""
    ranked = sorted(results, key=lambda one: (one is not results[best], -one.estimate.value))
    equals = [one for one in ranked if not one.is_distinguishable]
    costs = [one.trainable_params for one in equals]
    limits = _limits(len(results) - 1, setting)
    is_undecided = None in costs or bool(limits)
    cheapest = None if is_undecided else min(equals, key=lambda one: one.trainable_params or 0.0)
    return Comparison(
        **asdict(setting),
        results=results,
        best=results[best].name,
        equals=tuple(one.name for one in equals),
        cheapest=None if cheapest is None else cheapest.name,
        sentence=_sentence(ranked, equals, cheapest, setting, limits),
        notes=(*_notes(results, setting.num_images), *(f"{limit.text}: {limit.reason}" for limit in limits)),
    )


def _limits(num_others: int, setting: Setting) -> list[_Limit]:
    """Return the reasons why no difference can be significant; empty if one can be."""
    return [
        _Limit(
            f"{_counted(number, noun)} too few to distinguish {num_others + 1} configurations",
            f"no corrected p can be below {min(1.0, num_others * least):.2g}. Take more {noun}s.",
        )
        for least, number, noun in (
            (1 / (1 + setting.num_resamples), setting.num_resamples, "resample"),
            (least_p(setting.num_images), setting.num_images, "image"),
        )
        if num_others * least >= 1 - setting.level
    ]


def _notes(results: Sequence[Result], num_images: int) -> list[str]:
    """Return notes on the limits of a comparison of few images, or of configurations trained once."""
    notes = []
    if num_images < 20:
        notes.append(
            f"{_counted(num_images, 'image')} few to resample: the intervals are rough, and rather too narrow."
        )
    if any(len(one.seed_values) == 1 for one in results):
        notes.append("A configuration was trained once, so that the variation of its metric with the seed is unknown.")
    return notes


def _sentence(
    ranked: Sequence[Result],
    equals: Sequence[Result],
    cheapest: Result | None,
    setting: Setting,
    limits: Sequence[_Limit],
) -> str:
    best, others = ranked[0], equals[1:]
    interval = f"{round(100 * setting.level)} % interval {best.estimate.low:.3f} to {best.estimate.high:.3f}"
    first = f"{best.name} has the highest {setting.metric}, {best.estimate.value:.3f} ({interval})"
    if len(ranked) == 1:
        return f"{first}."
    if limits:
        return f"{first}, but {limits[0].text}."
    if not others:
        return f"{first}, and every other configuration is distinguishable from it."
    names = ", ".join(one.name for one in others)
    if len(equals) == len(ranked):
        found = f"{first}, but none of the others is distinguishable from it: {names}."
    else:
        found = f"{first}; not distinguishable from it: {names}."
    if cheapest is None:
        return found
    cost = f"{cheapest.trainable_params:,.0f} trainable parameters"
    return f"{found} The cheapest of these {len(equals)} is {cheapest.name}, with {cost}."


def _counted(number: int, noun: str) -> str:
    """Return a subject with its verb, such as `1 image is` and `6 images are`."""
    return f"1 {noun} is" if number == 1 else f"{number} {noun}s are"
