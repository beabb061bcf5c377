#!/usr/bin/env python
"""Write the tables and plots of docs/study.md from the sweeps of configs/study*.yaml.

    python tools/study_page.py --sweeps runs/study-desk runs/study-potholes   # import results of sweeps
    python tools/study_page.py                                                      # use the imported results

The results of a sweep are copied to `--raw/<its name>.json`: the metrics of every trial, the size of its low-rank
updates where `vispeft inspect` was run on it, and the comparison with its intervals. Tables and plots are made from
these files alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from compared_runs import compare_runs
from marked_pages import put
from numpy.typing import NDArray
from scipy.stats import t as student_t

ROOT = Path(__file__).resolve().parents[1]
UNCHANGED = "as it is"
COUNTS = {"head only": 0, **{f"{n} adapter{'s' * (n > 1)} per block": n for n in (1, 2, 3, 4)}}
SETS = ("desk", "potholes", "animals")
# upper bounds of trained parameters in percent: configurations between two of them are compared as equals
BUDGETS = (1.0, 1.7, 2.7, 4.0, 10.0)
KEPT_OF_TRIAL = ("trial", "variant", "parameters", "seed", "state", "metrics")


def take_in(sweep: Path, raw: Path) -> None:
    """Copy the results of a sweep, without the paths of its machine."""
    found = json.loads((sweep / "results.json").read_text())
    trials = [{key: trial[key] for key in KEPT_OF_TRIAL} for trial in found["trials"]]
    for trial in trials:
        run = sweep / "trials" / f"{trial['trial']:04d}"
        trial |= {"curve": curve(run)} | update_norm(run)
    compared = sweep / "comparison.json"
    comparison = json.loads(compared.read_text()) if compared.is_file() else comparison_so_far(sweep, found["trials"])
    environment = json.loads(next((sweep / "trials").glob("*/environment.json")).read_text())
    machine = {key: environment[key] for key in ("device", "seed", "versions", "packages") if key in environment}
    machine.pop("seed", None)
    content = {"sampler": found["sampler"], "num_runs": found["num_runs"], "machine": machine}
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{sweep.name}.json").write_text(
        json.dumps({**content, "trials": trials, "comparison": comparison}, indent=1) + "\n"
    )


def comparison_so_far(sweep: Path, trials: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the comparison of the configurations that are complete; None for less than two of them."""
    done = with_all_seeds(trials)
    if len(done) < 2:
        return None
    members = [one for some in done.values() for one in some]
    directories = [sweep / "trials" / f"{one['trial']:04d}" for one in members]
    comparison = compare_runs(directories, [one["variant"] for one in members])
    for result in comparison["results"]:
        result["trials"] = [members[number - 1]["trial"] for number in result["trials"]]
    return comparison


def with_all_seeds(trials: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the trials of each variant of which every seed is complete, but for those with a point of a space."""
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        by_variant.setdefault(trial["variant"], []).append(trial)
    num_seeds = max((len(some) for some in by_variant.values()), default=0)
    return {
        variant: some
        for variant, some in by_variant.items()
        if len(some) == num_seeds and all(one["state"] == "complete" and not one["parameters"] for one in some)
    }


def curve(run: Path) -> list[tuple[int, float]]:
    """Return step and mask AP of each evaluation of a run, in order; empty for a run that was not begun."""
    metrics = run / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    return [(row["step"], row["segm/AP"]) for row in rows if row["split"] == "val"]


def update_norm(run: Path) -> dict[str, float]:
    """Return the norm of an inspected run's low-rank updates relative to their weights, the median over its sites."""
    inspected = run / "inspection.json"
    if not inspected.is_file():
        return {}
    norms = [site["spectrum"]["relative_norm"] for site in json.loads(inspected.read_text())["sites"] if site["rank"]]
    return {"update_norm": median(norms)} if norms else {}


def complete(content: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the metrics of each variant's complete trials, in the order of the sweep."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for trial in content["trials"]:
        if trial["state"] == "complete":
            found.setdefault(trial["variant"], []).append(trial["metrics"])
    return found


def compared_results(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the result of each variant in the comparison; empty before all trials are done."""
    variants = {trial["trial"]: trial["variant"] for trial in content["trials"]}
    entries = (content["comparison"] or {"results": []})["results"]
    return {variants[one["trials"][0]]: one for one in entries}


def curve_of(content: Mapping[str, Any], variant: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps of the evaluations and the mask AP of the best one so far: means over the variant's trials."""
    done = [one for one in content["trials"] if one["variant"] == variant and one["state"] == "complete"]
    curves = [np.array(one["curve"]) for one in done]
    steps = np.concatenate([[0.0], curves[0][:, 0]])
    ap = np.mean([np.maximum.accumulate(one[:, 1]) for one in curves], axis=0)
    return steps, np.concatenate([[0.0], ap])


def speed_table(content: Mapping[str, Any]) -> str:
    """Return a table of the steps that each variant needs, and of mask AP after equal training time.

    The time is that of the variant with the shortest runs. Between evaluations AP is interpolated linearly.
    """
    runs = complete(content)
    seconds = {variant: mean(run["train_seconds"] for run in some) for variant, some in runs.items()}
    budget = min(seconds.values())
    lines = [
        f"| configuration | 95 % of its AP at step | AP after {budget:.0f} s | AP at the end |",
        "|---|---|---|---|",
    ]
    for variant in runs:
        steps, ap = curve_of(content, variant)
        there = int(steps[np.flatnonzero(ap >= 0.95 * ap[-1])[0]])
        early = float(np.interp(steps[-1] * budget / seconds[variant], steps, ap))
        lines.append(f"| {variant} | {there} | {early:.3f} | {ap[-1]:.3f} |")
    return "\n".join(lines)


def table(content: Mapping[str, Any]) -> str:
    """Return a table with a row per variant: trained parameters, AP with interval, difference to the best, costs."""
    compared = compared_results(content)
    lines = [
        "| configuration | trained | mask AP | of each seed | to the best | corrected p | AP50 | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, runs in complete(content).items():
        first, result = runs[0], compared.get(variant)
        ap = mean(run["segm/AP"] for run in runs)
        interval = difference = p = ""
        if result:
            interval = f" [{result['estimate']['low']:.3f}, {result['estimate']['high']:.3f}]"
            gap = result["difference"]
            difference = "best" if gap is None else f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
            p = "" if gap is None else f"{result['corrected_p']:.3f}"
        seeds = " ".join(f"{run['segm/AP']:.3f}" for run in runs)
        lines.append(
            f"| {variant} | {first['trainable_params']:,} ({first['trainable_percent']:.2f} %) | {ap:.3f}{interval} "
            f"| {seeds} | {difference} | {p} | {mean(run['segm/AP50'] for run in runs):.3f} "
            f"| {mean(run['train_seconds'] for run in runs):.0f} "
            f"| {max(run['peak_memory_bytes'] for run in runs) / 1e6:.0f} |"
        )
    sentence = (content["comparison"] or {}).get("sentence")
    done = sum(len(runs) for runs in complete(content).values())
    if done < content["num_runs"]:
        sentence = f"{sentence or ''} {done} of {content['num_runs']} trials are done.".strip()
    return "\n".join([*lines, "", sentence or ""]).strip()


def changes_table(content: Mapping[str, Any]) -> str:
    """Return a table with a row per variant: mask AP, its change against the variant `as it is`, costs.

    The change is the mean of the differences between trials with equal seeds; for three seeds or more with its 95 %
    interval (Student's t over the seeds, not corrected for the number of variants). The number of seeds may differ
    between variants.
    """
    lines = [
        "| configuration | trained | mask AP | of each seed | change, same seeds | AP50 | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs_of: dict[str, dict[int, Mapping[str, Any]]] = {}
    for trial in content["trials"]:
        if trial["state"] == "complete":
            runs_of.setdefault(trial["variant"], {})[trial["seed"]] = trial["metrics"]
    for variant, by_seed in runs_of.items():
        runs = list(by_seed.values())
        seeds = " ".join(f"{by_seed[seed]['segm/AP']:.3f}" for seed in sorted(by_seed))
        base = runs_of[UNCHANGED]
        gaps = [run["segm/AP"] - base[seed]["segm/AP"] for seed, run in by_seed.items() if seed in base]
        lines.append(
            f"| {variant} | {runs[0]['trainable_params']:,} ({runs[0]['trainable_percent']:.2f} %) "
            f"| {mean(run['segm/AP'] for run in runs):.3f} | {seeds} "
            f"| {'' if variant == UNCHANGED else change(gaps)} | {mean(run['segm/AP50'] for run in runs):.3f} "
            f"| {mean(run['train_seconds'] for run in runs):.0f} "
            f"| {max(run['peak_memory_bytes'] for run in runs) / 1e6:.0f} |"
        )
    return "\n".join(lines)


def change(gaps: Sequence[float]) -> str:
    """Return the mean of differences with its 95 % interval, which takes three or more; empty for none."""
    if not gaps:
        return ""
    if len(gaps) < 3:
        return f"{mean(gaps):+.3f}"
    half = student_t.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5
    return f"{mean(gaps):+.3f} [{mean(gaps) - half:+.3f}, {mean(gaps) + half:+.3f}]"


def budgets_table(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of mask AP on all sets, the configurations grouped by their share of trained parameters.

    contents: the results of one study by the name of the set; sets without all seeds of full fine-tuning are left out.
    The groups are those of BUDGETS, and full fine-tuning. Only configurations with all seeds on all sets are shown, by
    their share of full fine-tuning's mask AP, mean over the sets.
    """
    done = {name: with_all_seeds(content["trials"]) for name, content in contents.items()}
    done = {name: some for name, some in done.items() if "full" in some}
    first, *others = done.values()
    ap = {
        variant: [mean(trial["metrics"]["segm/AP"] for trial in some[variant]) for some in done.values()]
        for variant in first
        if all(variant in some for some in others)
    }
    percent = {variant: first[variant][0]["metrics"]["trainable_percent"] for variant in ap}
    share = {
        variant: mean(one / full for one, full in zip(values, ap["full"], strict=True))
        for variant, values in ap.items()
    }
    lines = [
        f"| group | configuration | trained | {' | '.join(done)} | of full fine-tuning |",
        "|---|---|---|" + "---|" * (len(done) + 1),
    ]
    low = 0.0
    for high in (*BUDGETS, 100.0):
        group = sorted((variant for variant in ap if low < percent[variant] <= high), key=lambda one: -share[one])
        name = "all" if high == 100 else f"{low:g} to {high:g} %"
        for variant in group:
            values = " | ".join(f"{value:.3f}" for value in ap[variant])
            label = name if variant == group[0] else ""
            lines.append(
                f"| {label} | {variant} | {percent[variant]:.2f} % | {values} | {100 * share[variant]:.0f} % |"
            )
        low = high
    return "\n".join(lines)


def points_table(content: Mapping[str, Any]) -> str:
    """Return a table with a row per variant of a sweep over a space: mask AP at each point, the best one in bold.

    Where the trials were inspected, it also has the size of the update beside the weight.
    """
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    norms: dict[str, dict[str, list[float]]] = {}
    for trial in content["trials"]:
        if trial["state"] == "complete":
            point = ", ".join(f"{value:g}" for value in trial["parameters"].values())
            rows.setdefault(trial["variant"], {}).setdefault(point, []).append(trial["metrics"])
            if "update_norm" in trial:
                norms.setdefault(trial["variant"], {}).setdefault(point, []).append(trial["update_norm"])
    keys = dict.fromkeys(key.rpartition(".")[2] for trial in content["trials"] for key in trial["parameters"])
    head = f"| configuration | trained | mask AP by {', '.join(keys)} |"
    lines = [f"{head} norm of the update / of the weight |", "|---|---|---|---|"] if norms else [head, "|---|---|---|"]
    for variant, points in rows.items():
        ap = {point: mean(run["segm/AP"] for run in runs) for point, runs in points.items()}
        best = max(ap, key=lambda point: ap[point])
        shown = (f"{point}: {value:.3f}" for point, value in ap.items())
        cells = [f"**{cell}**" if point == best else cell for point, cell in zip(ap, shown, strict=True)]
        first = points[best][0]
        trained = f"{first['trainable_params']:,} ({first['trainable_percent']:.2f} %)"
        sizes = "; ".join(f"{point}: {mean(some):.2g}" for point, some in norms.get(variant, {}).items())
        lines.append(f"| {variant} | {trained} | {'; '.join(cells)} |" + (f" {sizes} |" if norms else ""))
    return "\n".join(lines)


def draw_counts(contents: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot mask AP against adapters per block, one panel per set: mean over seeds, each seed, and full fine-tuning."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(contents), figsize=(3.4 * len(contents), 3), squeeze=False, layout="constrained")
    for panel, (name, content) in zip(axes[0], contents.items(), strict=True):
        runs = complete(content)
        there = [variant for variant in COUNTS if variant in runs]
        panel.plot(
            [COUNTS[variant] for variant in there],
            [mean(run["segm/AP"] for run in runs[variant]) for variant in there],
            color="tab:blue",
        )
        for variant in there:
            seeds = [run["segm/AP"] for run in runs[variant]]
            panel.scatter([COUNTS[variant]] * len(seeds), seeds, s=12, color="tab:blue", zorder=3)
        if "full" in runs:
            ap = mean(run["segm/AP"] for run in runs["full"])
            panel.axhline(ap, color="0.3", linestyle="--", linewidth=1)
            panel.annotate("full", (0, ap), xytext=(0, 2), textcoords="offset points", fontsize=8)
        panel.set(title=name, xlabel="adapters per block", xticks=range(5))
        panel.margins(y=0.12)
    axes[0][0].set_ylabel("mask AP")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main_table(content: Mapping[str, Any]) -> str:
    """Return the table that fits a study: of the points of a space, of changes of one configuration, of variants."""
    if any(trial["parameters"] for trial in content["trials"]):
        return points_table(content)
    if any(trial["variant"] == UNCHANGED for trial in content["trials"]):
        return changes_table(content)
    return table(content)


def write(names: Iterable[str], raw: Path, page: Path) -> None:
    """Write the tables into the page, and its plots beside the raw files. Equal results give equal files."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "vispeft"
    contents = {name: json.loads((raw / f"{name}.json").read_text()) for name in names}
    shown = page.read_text(encoding="utf-8")
    for name, content in contents.items():
        if f"<!-- {name} -->" in shown:
            put(page, name, main_table(content))
        if f"<!-- {name}-speed -->" in shown:
            put(page, f"{name}-speed", speed_table(content))
    study = {name: contents[f"study-{name}"] for name in SETS if f"study-{name}" in contents}
    if study and "<!-- budgets -->" in shown:
        put(page, "budgets", budgets_table(study))
    if study and "adapters_per_block.svg" in shown:
        draw_counts(study, raw / "adapters_per_block.svg")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, import the sweeps, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=Path, nargs="*", default=[], help="sweep directories to import first")
    parser.add_argument("--raw", type=Path, default=ROOT / "docs" / "study")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md")
    args = parser.parse_args(words)
    for sweep in args.sweeps:
        take_in(sweep, args.raw)
    write(sorted(path.stem for path in args.raw.glob("*.json")), args.raw, args.page)


if __name__ == "__main__":
    main()
