"""Conclusion of a sweep in sentences, and recommended next steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vispeft.io.run_layout import CONFIG_FILE
from vispeft.io.sweep_layout import BEST_FILE
from vispeft.report.formats import count, figure
from vispeft.report.page import NextStep
from vispeft.report.points import Point, ranked
from vispeft.report.sweep_files import SweepFiles

_FEWEST_SEEDS = 3


def conclusion(sweep: SweepFiles, points: Sequence[Point]) -> list[str]:
    """Return sentences on the configurations that equal the best and the cheapest of them, as far as is known."""
    if sweep.verdict is not None:
        return [sweep.verdict.sentence, *sweep.verdict.notes]
    first_to_last = ranked(points)
    if not first_to_last:
        return ["No trial is complete yet." if num_open(sweep) else "No trial was completed."]
    best = first_to_last[0]
    sentences = [f"Highest so far: {best.title}, mask AP {figure(best.ap)}{_over(best)}."]
    equals = equals_of(sweep, points)
    if len(first_to_last) > 1 and len(best.trials) < 2:
        sentences.append("With one seed per configuration, nothing can be said about which differences are real.")
    elif len(equals) > 1:
        cheapest = cheapest_of(equals)
        others = ", ".join(point.title for point in equals[1:])
        sentences.append(f"By the range of its seeds alone, these reach as high as its lowest seed: {others}.")
        if cheapest is not None:
            trained = count(cheapest.mean("trainable_params"))
            sentences.append(f"The cheapest of these is {cheapest.title}, with {trained} trainable parameters.")
    return sentences


def equals_of(sweep: SweepFiles, points: Sequence[Point]) -> list[Point]:
    """Return the configurations that are not distinguishable from the best, the best first."""
    found = ranked(points)
    if sweep.verdict is not None:
        best, equals = sweep.verdict.best, sweep.verdict.equals
        return sorted((point for point in found if point.number in equals), key=lambda point: point.number != best)
    if not found or found[0].interval is None:
        return found[:1]
    lowest = found[0].interval.low
    return [point for point in found if point is found[0] or (point.interval and point.interval.high >= lowest)]


def num_open(sweep: SweepFiles) -> int:
    """Return the number of trials that are neither complete nor failed nor pruned."""
    done = sum(sweep.count(state) for state in ("complete", "failed", "pruned"))
    return max(0, int(sweep.results.get("num_runs", 0)) - done)


def cheapest_of(points: Sequence[Point]) -> Point | None:
    """Return the configuration with the fewest trainable parameters, or None if these are unknown."""
    priced = [point for point in points if point.mean("trainable_params") is not None]
    return min(priced, key=lambda point: point.mean("trainable_params") or 0.0, default=None)


def next_steps(sweep: SweepFiles, points: Sequence[Point]) -> list[NextStep]:
    """Return recommended next steps for the sweep."""
    path = str(sweep.path)
    again = ["vispeft", "sweep", f"{path}/sweep.yaml"]
    found = []
    left = num_open(sweep)
    if left:
        found.append(NextStep(f"{left} trials are left. Go on where it was:", shlex.join([*again, "--out", path])))
    if sweep.count("failed"):
        retry = shlex.join([*again, "--out", path, "--retry-failed"])
        found.append(NextStep("Some trials failed. Once the reason is mended, try them again:", retry))
    equals = equals_of(sweep, points)
    if not equals or left:
        return found
    chosen = cheapest_of(equals) or equals[0]
    steps = int(chosen.mean("steps") or 0)
    config = f"{chosen.nearest.path}/{CONFIG_FILE}" if chosen.nearest.path else f"{path}/{BEST_FILE}"
    why = "the cheapest that does as well as the best" if chosen is not equals[0] else "the best"
    longer = ["vispeft", "train", config, *([f"train.steps={2 * steps}"] if steps else [])]
    found.append(NextStep(f"Train {chosen.title}, {why}, for twice as long:", shlex.join(longer)))
    most_seeds = max(len(point.trials) for point in equals)
    if most_seeds < _FEWEST_SEEDS:
        seeds = [*again, "sweep.seeds=[1,2,3]", f"sweep.name={sweep.results.get('name', 'sweep')}-seeds"]
        found.append(NextStep("More seeds tell chance from difference:", shlex.join(seeds)))
    found += [NextStep(text) for text in _edges(equals[0], points)]
    runs = [str(point.nearest.path) for point in equals[:2] if point.nearest.path]
    if runs:
        predict = ["vispeft", "predict", runs[0], "IMAGES", "--out", "found"]
        found.append(NextStep("Find objects in your own images with the best:", shlex.join(predict)))
    if str(sweep.results.get("storage", "")).startswith("sqlite"):
        board = shlex.join(["optuna-dashboard", str(sweep.results["storage"])])
        found.append(NextStep("Look at the study in Optuna's own dashboard (pip install optuna-dashboard):", board))
    return found


def _edges(best: Point, points: Sequence[Point]) -> list[str]:
    """Return a hint for each number whose best value is the largest or smallest tried: the optimum may be beyond it."""
    texts = []
    for name, value in best.labels.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        tried = [point.labels[name] for point in points if isinstance(point.labels.get(name), (int, float))]
        if len(set(tried)) > 2 and value in (min(tried), max(tried)):
            side = "largest" if value == max(tried) else "smallest"
            texts.append(f"The best has {name} = {value}, the {side} that was tried: widen `sweep.space` there.")
    return texts


def _over(point: Point) -> str:
    return f" (mean over {len(point.trials)} seeds)" if len(point.trials) > 1 else ""
