from __future__ import annotations

from collections.abc import Mapping

from vispeft.training.callbacks.selection import BestSelection
from vispeft.training.state import Counters


def test_on_evaluation__keeps_the_best_and_of_equals_the_earlier() -> None:
    kept: list[tuple[int, float]] = []

    def keep_best(step: int, metrics: Mapping[str, float]) -> None:
        kept.append((step, metrics["AP"]))

    counters = Counters()
    selection = BestSelection(counters, "AP", keep_best)
    evaluations_since_best = []
    for counters.step, score in enumerate([0.2, 0.5, 0.5, float("nan"), 0.6], start=1):
        selection.on_evaluation({"AP": score})
        evaluations_since_best.append(counters.evaluations_since_best)
    assert kept == [(1, 0.2), (2, 0.5), (5, 0.6)]
    assert evaluations_since_best == [0, 0, 1, 2, 0]
    assert (counters.best_step, counters.best_metrics) == (5, {"AP": 0.6})


def test_on_evaluation__a_number_is_better_than_nan() -> None:
    counters = Counters()
    selection = BestSelection(counters, "AP", keep_best=None)
    for counters.step, score in enumerate([float("nan"), float("nan"), 0.1], start=1):
        selection.on_evaluation({"AP": score})
    assert (counters.best_step, counters.evaluations_since_best) == (3, 0)


def test_on_evaluation__without_metrics_keeps_the_last_weights() -> None:
    counters = Counters(step=3)
    BestSelection(counters, "AP", keep_best=None).on_evaluation({})
    assert (counters.best_step, counters.best_metrics, counters.lacks_score) == (3, {}, True)
