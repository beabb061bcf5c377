"""Grouping of runs that differ in their seeds alone."""

from __future__ import annotations

from operator import itemgetter

from vispeft.evaluation.statistics.seeds import group_by_configuration, key_of_labels, with_most_seeds

RUNS = [("a", 1), ("b", 1), ("a", 2), (None, 1), ("a", 1), (None, 1)]


def test_group_by_configuration__keeps_the_order_and_unknown_ones_apart() -> None:
    assert group_by_configuration(RUNS, itemgetter(0)) == [
        [("a", 1), ("a", 2), ("a", 1)],
        [("b", 1)],
        [(None, 1)],
        [(None, 1)],
    ]


def test_group_by_configuration__puts_the_same_seed_into_another_group() -> None:
    groups = group_by_configuration(RUNS, itemgetter(0), seed_of=itemgetter(1))
    assert groups == [[("a", 1), ("a", 2)], [("b", 1)], [(None, 1)], [("a", 1)], [(None, 1)]]


def test_key_of_labels__does_not_depend_on_the_order() -> None:
    assert key_of_labels({"a": 1, "b": "x"}) == key_of_labels({"b": "x", "a": 1}) != key_of_labels({"a": 1.5})


def test_with_most_seeds__leaves_out_groups_of_fewer() -> None:
    assert with_most_seeds([[1], [1, 2], [3, 4]], len_of) == [[1, 2], [3, 4]]
    assert with_most_seeds([], len_of) == []


def len_of(group: list[int]) -> list[int]:
    return group
