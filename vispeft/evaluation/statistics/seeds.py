"""Groups of runs: those of one configuration differ in their seeds alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeVar

Run = TypeVar("Run")
Group = TypeVar("Group")


def group_by_configuration(
    runs: Iterable[Run],
    configuration_of: Callable[[Run], Hashable],
    *,
    seed_of: Callable[[Run], Hashable] | None = None,
) -> list[list[Run]]:
    """Return the runs of each configuration; the groups and their runs are in the order of `runs`.

    configuration_of: function that returns everything but the seed; a run with None (unknown) forms its own group
    seed_of: function that returns the seed; if given, two runs of one configuration with the same seed are put into
        different groups
    """
    groups: dict[Hashable, list[Run]] = {}
    uses: dict[Hashable, int] = {}
    for place, run in enumerate(runs):
        configuration = configuration_of(run)
        if configuration is None:
            groups[None, place] = [run]
            continue
        occurrence = 0
        if seed_of is not None:
            used = (configuration, seed_of(run))
            occurrence = uses.get(used, 0)
            uses[used] = occurrence + 1
        groups.setdefault((configuration, occurrence), []).append(run)
    return list(groups.values())


def key_of_labels(labels: Mapping[str, Any]) -> str:
    """Return a text that is equal for labels with the same names and values in any order."""
    return repr(sorted(labels.items(), key=lambda item: item[0]))


def with_most_seeds(groups: Sequence[Group], runs_of: Callable[[Group], Sized]) -> list[Group]:
    """Return the groups that have as many runs as any other."""
    # means over different numbers of seeds are not comparable
    most = max((len(runs_of(group)) for group in groups), default=0)
    return [group for group in groups if len(runs_of(group)) == most]
