"""Inspection of what fine-tuning changed in the weights of finished runs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vispeft import peft
from vispeft.engine.saved_runs import load_base
from vispeft.errors import CheckpointError
from vispeft.peft.updates import Spectrum, Update, overlap, spectrum, weight_updates

_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")
# of each pattern in the report
_SHOWN_VALUES = 16
# an update whose effective rank is above this share of its rank uses all of it
_FULL = 0.8


@dataclass(frozen=True)
class InspectedSite:
    """One weight of a run: its update, and how far that of each further run overlaps with it, by run."""

    name: str
    methods: tuple[str, ...]
    rank: int | None
    shape: tuple[int, int]
    spectrum: Spectrum
    overlaps: dict[str, float]


@dataclass(frozen=True)
class Inspection:
    """Updates of a run's weights.

    others: further runs, for the overlaps
    without: number of deltas that are no update of a weight, by reason
    """

    run: str
    others: tuple[str, ...]
    sites: tuple[InspectedSite, ...]
    without: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of inspection.json."""
        return {
            "run": self.run,
            "others": list(self.others),
            "advice": self.advice(),
            "groups": self.groups(),
            "sites": [asdict(site) for site in self.sites],
            "without": self.without,
        }

    def groups(self) -> list[dict[str, Any]]:
        """Return medians over the sites of one pattern, blocks under `*`, in the order of the model."""
        grouped: dict[tuple[str, tuple[str, ...]], list[InspectedSite]] = {}
        for site in self.sites:
            grouped.setdefault((_NUMBER.sub("*", site.name), site.methods), []).append(site)
        return [
            {
                "pattern": pattern,
                "how": ", ".join(methods) or "in full",
                "sites": len(sites),
                "rank": max((site.rank or 0 for site in sites), default=0) or None,
                **{key: _median([getattr(site.spectrum, key) for site in sites]) for key in _MEDIANS},
                "values": _typical_values(sites),
                "overlaps": {other: _mean([site.overlaps.get(other) for site in sites]) for other in self.others},
            }
            for (pattern, methods), sites in grouped.items()
        ]

    def advice(self) -> list[str]:
        """Return a sentence for each kind of site on its rank: too large, used up, or fitting."""
        sentences = []
        for rank in sorted({site.rank for site in self.sites if site.rank}):
            sites = [site for site in self.sites if site.rank == rank and site.spectrum.values]
            used = median(site.spectrum.effective_rank for site in sites)
            held = math.ceil(median(site.spectrum.energy_rank for site in sites))
            start = f"Rank {rank} ({_counted(len(sites), 'site')}): effective rank {used:.1f}"
            if used >= _FULL * rank:
                sentences.append(f"{start}; all directions are used. Try {2 * rank}.")
            elif held <= rank // 2:
                sentences.append(f"{start}; {held} of its directions hold 90 % of the update. Try {held}.")
            else:
                sentences.append(f"{start}; {held} of its directions hold 90 % of the update. It fits.")
        full = [site for site in self.sites if site.rank is None and not site.methods]
        if full:
            held = math.ceil(median(site.spectrum.energy_rank for site in full))
            start, directions = f"Trained in full ({_counted(len(full), 'weight')})", _counted(held, "direction")
            sentences.append(f"{start}: 90 % of the update is in {directions}.")
        return sentences


_MEDIANS = ("effective_rank", "energy_rank", "relative_norm", "amplification", "share_in_top", "share_by_chance")


def inspect_runs(roots: Sequence[str | os.PathLike[str]]) -> Inspection:
    """Return the updates of the first run's weights, and their overlaps with those of the others.

    Raises CheckpointError where no delta of the first run is an update of a weight, and no matrix is trained in full.
    """
    first, *others = roots
    updates, refused = _updates(first)
    if not updates:
        reasons = "; ".join(dict.fromkeys(refused.values())) or "nothing was trained"
        raise CheckpointError(f"No weight of `{first}` has an update to inspect: {reasons}.")
    by_run = {_name(other): {update.name: update for update in _updates(other)[0]} for other in others}
    without = {reason: list(refused.values()).count(reason) for reason in dict.fromkeys(refused.values())}
    return Inspection(
        _name(first),
        tuple(by_run),
        tuple(_inspected(update, by_run) for update in updates),
        without,
    )


def _updates(root: str | os.PathLike[str]) -> tuple[list[Update], dict[str, str]]:
    run = load_base(root)
    base = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    peft.load_adapter(run.model, run.directory.adapter)
    return weight_updates(run.model, base)


def _inspected(update: Update, others: dict[str, dict[str, Update]]) -> InspectedSite:
    fitting = {
        run: updates[update.name]
        for run, updates in others.items()
        if update.name in updates and updates[update.name].change.shape == update.change.shape
    }
    overlaps = {run: overlap(update, other) for run, other in fitting.items()}
    outputs, inputs = update.change.shape
    return InspectedSite(update.name, update.methods, update.rank, (outputs, inputs), spectrum(update), overlaps)


def _typical_values(sites: Sequence[InspectedSite]) -> list[float]:
    """Return the medians of the first singular values over the largest."""
    length = min(_SHOWN_VALUES, *(len(site.spectrum.values) for site in sites), _SHOWN_VALUES)
    return [median(site.spectrum.values[i] / site.spectrum.values[0] for site in sites) for i in range(length)]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _name(root: str | os.PathLike[str]) -> str:
    return Path(root).as_posix()
