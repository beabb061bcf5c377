"""Conclusion of a sweep in sentences, and recommended next steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vispeft.io.run_layout import CONFIG_FILE
from vispeft.io.sweep_layout import BEST_FILE
from vispeft.report.configurations import Configuration, ranked
from vispeft.report.formats import count, metric_text
from vispeft.report.page import NextStep
from vispeft.report.sweep_contents import SweepContents

_FEWEST_SEEDS = 3


def conclusion(sweep: SweepContents, configurations: Sequence[Configuration]) -> list[str]:
    """Return sentences about the best configurations and the cheapest of these, as far as results exist."""
    if sweep.comparison is not None:
        return [sweep.comparison.sentence, *sweep.comparison.notes]
    by_ap = ranked(configurations)
    if not by_ap:
        return ["No trial is complete yet." if num_open(sweep) else "No trial was completed."]
    best = by_ap[0]
    sentences = [f"Highest so far: {best.title}, mask AP {metric_text(best.ap)}{_seed_note(best)}."]
    equals = equals_of(sweep, configurations)
    if len(by_ap) > 1 and len(best.trials) < 2:
        sentences.append("With one seed per configuration, no difference can be called significant.")
    elif len(equals) > 1:
        cheapest = cheapest_of(equals)
        others = ", ".join(one.title for one in equals[1:])
        sentences.append(f"By the range of the seeds alone, these reach the lowest seed of the best: {others}.")
        if cheapest is not None:
            trained = count(cheapest.mean("trainable_params"))
            sentences.append(f"The cheapest of these is {cheapest.title}, with {trained} trainable parameters.")
    return sentences


def equals_of(sweep: SweepContents, configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations that are not distinguishable from the best, the best first."""
    found = ranked(configurations)
    if sweep.comparison is not None:
        best, equals = sweep.comparison.best, sweep.comparison.equals
        return sorted((one for one in found if one.number in equals), key=lambda one: one.number != best)
    if not found or found[0].interval is None:
        return found[:1]
    lowest = found[0].interval.low
    return [one for one in found if one is found[0] or (one.interval and one.interval.high >= lowest)]


def num_open(sweep: SweepContents) -> int:
    """Return the number of trials that are running or waiting."""
    done = sum(sweep.count(state) for state in ("complete", "failed", "pruned"))
    return max(0, int(sweep.results.get("num_runs", 0)) - done)


def cheapest_of(configurations: Sequence[Configuration]) -> Configuration | None:
    """Return the configuration with the fewest trainable parameters, or None if these are unknown."""
    priced = [one for one in configurations if one.mean("trainable_params") is not None]
    return min(priced, key=lambda configuration: configuration.mean("trainable_params") or 0.0, default=None)


def next_steps(sweep: SweepContents, configurations: Sequence[Configuration]) -> list[NextStep]:
    """Return recommended next steps for the sweep."""
    path = str(sweep.path)
    resume = ["vispeft", "sweep", f"{path}/sweep.yaml"]
    found = []
    num_left = num_open(sweep)
    if num_left:
        found.append(NextStep(f"{num_left} trials are left. Resume the sweep:", shlex.join([*resume, "--out", path])))
    if sweep.count("failed"):
        retry = shlex.join([*resume, "--out", path, "--retry-failed"])
        found.append(NextStep("Some trials failed. Fix the cause, then run them again:", retry))
    equals = equals_of(sweep, configurations)
    if not equals or num_left:
        return found
    chosen = cheapest_of(equals) or equals[0]
    steps = int(chosen.mean("steps") or 0)
    config = f"{chosen.nearest.path}/{CONFIG_FILE}" if chosen.nearest.path else f"{path}/{BEST_FILE}"
    reason = "the cheapest that equals the best" if chosen is not equals[0] else "the best"
    longer = ["vispeft", "train", config, *([f"train.steps={2 * steps}"] if steps else [])]
    found.append(NextStep(f"Train {chosen.title}, {reason}, for twice as long:", shlex.join(longer)))
    most_seeds = max(len(one.trials) for one in equals)
    if most_seeds < _FEWEST_SEEDS:
        seeds = [*resume, "sweep.seeds=[1,2,3]", f"sweep.name={sweep.results.get('name', 'sweep')}-seeds"]
        found.append(NextStep("Train more seeds, for smaller intervals:", shlex.join(seeds)))
    found += [NextStep(text) for text in _hints_at_bounds(equals[0], configurations)]
    runs = [str(one.nearest.path) for one in equals[:2] if one.nearest.path]
    if runs:
        predict = ["vispeft", "predict", runs[0], "IMAGES", "--out", "predicted"]
        found.append(NextStep("Predict your own images with the best:", shlex.join(predict)))
    if str(sweep.results.get("storage", "")).startswith("sqlite"):
        dashboard = shlex.join(["optuna-dashboard", str(sweep.results["storage"])])
        found.append(NextStep("Look at the study in Optuna's own dashboard (pip install optuna-dashboard):", dashboard))
    return found


def _hints_at_bounds(best: Configuration, configurations: Sequence[Configuration]) -> list[str]:
    """Return a hint for each number with its best value at the end of the tried range: a wider range may be better."""
    texts = []
    for name, value in best.labels.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        tried = [one.labels[name] for one in configurations if isinstance(one.labels.get(name), (int, float))]
        if len(set(tried)) > 2 and value in (min(tried), max(tried)):
            side = "largest" if value == max(tried) else "smallest"
            texts.append(
                f"The best has {name} = {value}, the {side} value that was tried: extend `sweep.space` beyond it."
            )
    return texts


def _seed_note(configuration: Configuration) -> str:
    return f" (mean over {len(configuration.trials)} seeds)" if len(configuration.trials) > 1 else ""
