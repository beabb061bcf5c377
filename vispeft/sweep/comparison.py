"""Comparison of a sweep's configurations with the best one, by resampling images and seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from vispeft.errors import DataError, TrainingError
from vispeft.evaluation.statistics.candidates import read_candidates
from vispeft.evaluation.statistics.compare import Entry, compare
from vispeft.io.json_files import read_json, write_json
from vispeft.report.configurations import short_names, title_of
from vispeft.sweep.directory import SweepDirectory
from vispeft.sweep.results import Configuration, Results

# with more configurations, no difference would be significant after the correction for multiple comparisons
_MOST_COMPARED = 24
_AP = "segm/AP"


def compare_configurations(directory: SweepDirectory, results: Results, say: Callable[[str], None]) -> None:
    """Write comparison.json, unless the existing one covers exactly the trials that are complete now.

    The configurations of highest mask AP, at most 24, and those of the Pareto front are compared. Those with runs on
    other machines are left out.
    """
    complete = sorted(row.number for row in results.rows if row.state == "complete")
    if not complete:
        return
    if directory.comparison.is_file() and read_json(directory.comparison).get("complete") == complete:
        return
    chosen = [one for one in _chosen(results) if _is_here(directory, one)]
    if len(chosen) < 2:
        return
    say(f"Comparing {len(chosen)} configurations by resampling the validation images")
    paths = [directory.trial(row.index).root for one in chosen for row in one.rows]
    try:
        candidates = iter(read_candidates(paths, is_grouped=False).candidates)
        entries = []
        for one, title in zip(chosen, _titles(chosen), strict=True):
            records = tuple(next(candidates).entry.runs[0] for _ in one.rows)
            trained = sum(row.metrics["trainable_params"] for row in one.rows) / len(one.rows)
            entries.append(Entry(title, records, trained))
        content = compare(entries).to_dict()
    except DataError as error:
        say(f"warning: no comparison: {error}")
        return
    for result, one in zip(content["results"], chosen, strict=True):
        result["trials"] = [row.number for row in one.rows]
    write_json(directory.comparison, {"complete": complete, **content}, raises=TrainingError, indent=1)


def _chosen(results: Results) -> list[Configuration]:
    """Return the configurations of highest mask AP and those of the Pareto front, in the order of the sweep."""
    by_ap = sorted(results.ranked, key=_mean_ap, reverse=True)
    kept = [*by_ap[:_MOST_COMPARED], *(one for one in results.front if one not in by_ap[:_MOST_COMPARED])]
    return sorted(kept, key=lambda one: one.rows[0].index)


def _mean_ap(configuration: Configuration) -> float:
    return sum(row.metrics[_AP] for row in configuration.rows) / len(configuration.rows)


def _is_here(directory: SweepDirectory, configuration: Configuration) -> bool:
    return all(directory.trial(row.index).summary.is_file() for row in configuration.rows)


def _titles(configurations: Sequence[Configuration]) -> list[str]:
    """Return short titles; equal ones are made distinct by their trial numbers."""
    names = short_names(dict.fromkeys(name for one in configurations for name in one.labels))
    titles = [title_of(one.labels, names) for one in configurations]
    uses = Counter(titles)
    return [
        title if uses[title] == 1 else f"{title} (trial {one.rows[0].number})"
        for title, one in zip(titles, configurations, strict=True)
    ]
