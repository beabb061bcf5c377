"""Selection of the best weights, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vispeft.training.state import Counters


@dataclass(frozen=True)
class BestSelection:
    """Selection of the weights of the best evaluation so far; of equal ones the earlier.

    metric: its highest value is best
    keep_best: called with step and metrics while the model holds the weights to keep; None in all but the first process
    """

    counters: Counters
    metric: str
    keep_best: Callable[[int, Mapping[str, float]], None] | None

    def on_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Keep the model's weights if they are the best so far, or if there are no metrics to compare."""
        counters = self.counters
        if counters.best_step < 0 or not metrics or self._is_better(metrics):
            counters.best_step, counters.best_metrics = counters.step, dict(metrics)
            counters.evaluations_since_best = 0
            if self.keep_best is not None:
                self.keep_best(counters.step, metrics)
        else:
            counters.evaluations_since_best += 1

    def _is_better(self, metrics: Mapping[str, float]) -> bool:
        """Return True for a higher value than the best one; NaN is never better, and never stays the best."""
        best, value = self.counters.best_metrics[self.metric], metrics[self.metric]
        return value > best or (math.isnan(best) and not math.isnan(value))
