"""Runs of several configurations and seeds, compared as `vispeft compare` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vispeft.evaluation.statistics.candidates import read_candidates
from vispeft.evaluation.statistics.compare import compare


def compare_runs(directories: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """Return the comparison of the configurations that the runs belong to; those that differ in the seed are one.

    names: of the configuration of each run. `trials` of a result are the numbers of its runs, from 1.
    """
    candidates = read_candidates(list(directories)).candidates
    numbers = [[1 + directories.index(source.results.parent) for source in one.sources] for one in candidates]
    entries = [
        replace(candidate.entry, name=names[group[0] - 1]) for candidate, group in zip(candidates, numbers, strict=True)
    ]
    comparison: dict[str, Any] = compare(entries).to_dict()
    for result, group in zip(comparison["results"], numbers, strict=True):
        result["trials"] = group
    return comparison
