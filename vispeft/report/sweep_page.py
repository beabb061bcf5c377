"""Content of the page of a sweep. The layout is `templates/sweep.html.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vispeft.io.run_layout import REPORT_FILE
from vispeft.report.configurations import Configuration, configurations_of, front_of, run_page_of
from vispeft.report.formats import NOTHING, byte_size, count, defined, duration, formatted, metric_text
from vispeft.report.page import Cell, Fact, Interval, link_to, span_of, write_page
from vispeft.report.parameter_charts import parameter_charts
from vispeft.report.sweep_charts import colours_of, curve_charts, front_charts
from vispeft.report.sweep_conclusion import cheapest_of, conclusion, equals_of, next_steps
from vispeft.report.sweep_contents import AP, SweepContents, Trial, read_sweep


@dataclass(frozen=True)
class Row:
    """A row of a table. key: key of the configuration; marks: labels in the first cell; state: state of a trial"""

    key: str
    cells: Sequence[Cell]
    marks: Sequence[str] = ()
    state: str = ""


@dataclass(frozen=True)
class Tooltip:
    """Facts of a configuration, shown when the pointer is over it. key: key of the configuration"""

    key: str
    title: str
    facts: Sequence[Fact]


_SCORES = ("configuration", "seeds", "mask AP", "interval")
_DIFFERENCES = ("minus the best", "p")
_COSTS = ("trained", "time", "memory", "file")
TRIAL_COLUMNS = ("trial", "configuration", "seed", "state", "mask AP", "AP50", "box AP", "trained", "time", "memory")


def write_sweep_report(sweep_dir: Path) -> Path:
    """Write `report.html` into a sweep's directory, from its files, and return the page's path.

    The page has about 5 kB per trial: a row, and curves of at most 60 points. A thousand trials give about 5 MB.
    """
    page = sweep_dir / REPORT_FILE
    sweep = read_sweep(sweep_dir)
    configurations = configurations_of(sweep)
    colours = colours_of(configurations)
    curves = curve_charts(sweep, configurations, colours)
    names = {trial.number: one for one in configurations for trial in sweep.trials if trial.labels == one.labels}
    return write_page(
        page,
        "sweep.html.j2",
        title=str(sweep.results.get("name", sweep_dir.name)),
        kind="sweep",
        conclusion=conclusion(sweep, configurations),
        facts=_facts(sweep, configurations),
        fronts=front_charts(configurations, colours, page),
        parameters=parameter_charts(configurations, page),
        curves=curves,
        dashed=any(line["is_dashed"] for chart in curves for line in chart.lines),
        comparison=sweep.comparison,
        configurations=_configuration_rows(sweep, configurations, page),
        configuration_columns=(*_SCORES, *(_DIFFERENCES if sweep.comparison else ()), *_COSTS),
        trials=[_trial_row(trial, names[trial.number], page) for trial in sweep.trials],
        trial_columns=TRIAL_COLUMNS,
        unfinished=[
            _unfinished(trial, names[trial.number], sweep)
            for trial in sweep.trials
            if trial.state in ("failed", "pruned")
        ],
        tips=[_tooltip(one, sweep) for one in configurations],
        steps=next_steps(sweep, configurations),
        config=sweep.sweep_text,
    )


def _facts(sweep: SweepContents, configurations: Sequence[Configuration]) -> list[Fact]:
    """Return the progress of the sweep and its best results."""
    equals = equals_of(sweep, configurations)
    found = []
    if equals:
        best, cheapest = equals[0], cheapest_of(equals) or equals[0]
        interval = best.interval
        range_text = "" if interval is None else f", {metric_text(interval.low)} to {metric_text(interval.high)}"
        found = [Fact("highest mask AP", metric_text(best.ap), best.title + range_text)]
        if sweep.comparison is not None and len(equals) > 1:
            total = sum(one.is_complete for one in configurations)
            trained = f"{count(cheapest.mean('trainable_params'))} trained"
            found.append(Fact("not distinguishable", f"{len(equals)} of {total}", "from the best, which is included"))
            found.append(Fact("cheapest of these", cheapest.title, trained))
    done, total = sweep.count("complete"), sweep.results.get("num_runs", len(sweep.trials))
    states = [
        f"{number} {state}" for state in ("failed", "pruned", "running", "waiting") if (number := sweep.count(state))
    ]
    objectives = sweep.results.get("objectives", {})
    seconds = sum(trial.metrics.get("train_seconds", 0.0) for trial in sweep.trials)
    return [
        *found,
        Fact("trials complete", f"{done} of {total}", ", ".join(states)),
        Fact("training time", duration(seconds), "of all trials"),
        Fact(
            "search", str(sweep.results.get("sampler", NOTHING)), ", ".join(objectives) if len(objectives) > 1 else ""
        ),
    ]


def _configuration_rows(sweep: SweepContents, configurations: Sequence[Configuration], page: Path) -> list[Row]:
    """Return a row for every configuration with a complete trial, the best first."""
    equals = equals_of(sweep, configurations)
    cheapest = cheapest_of(equals) if len(equals) > 1 else None
    front = front_of(configurations, "trainable_params")
    rows = []
    shown = sorted((one for one in configurations if one.is_complete), key=lambda one: -(one.ap or 0.0))
    ends = [end for one in shown if one.interval for end in (one.interval.low, one.interval.high)]
    for configuration in shown:
        marks = [
            text
            for text, holds in (
                ("best", bool(equals) and configuration is equals[0]),
                ("equal", configuration in equals[1:]),
                ("cheapest of these", configuration is cheapest),
                ("Pareto front", configuration in front),
            )
            if holds
        ]
        rows.append(Row(configuration.key, _configuration_cells(configuration, sweep, page, ends), marks))
    return rows


def _configuration_cells(
    configuration: Configuration, sweep: SweepContents, page: Path, ends: Sequence[float]
) -> list[Cell]:
    """Return the cells of a configuration. ends: ends of all intervals, which share a scale"""
    target = run_page_of(configuration.nearest)
    interval = configuration.interval
    spread = NOTHING if interval is None else f"{metric_text(interval.low)} to {metric_text(interval.high)}"
    return [
        Cell(configuration.title, configuration.title, link_to(target, page) if target else ""),
        Cell(str(len(configuration.trials)), len(configuration.trials)),
        Cell(metric_text(configuration.ap), configuration.ap),
        Cell(spread, None if interval is None else interval.low, span=span_of(interval, ends)),
        *(_difference_cells(sweep.comparison.differences.get(configuration.number)) if sweep.comparison else ()),
        *_cost_cells(
            configuration.mean("trainable_params"),
            configuration.mean("train_seconds"),
            configuration.mean("peak_memory_bytes"),
        ),
        Cell(byte_size(configuration.mean("adapter_bytes")), configuration.mean("adapter_bytes")),
    ]


def _difference_cells(difference: tuple[Interval, float] | None) -> list[Cell]:
    """Return the difference to the best with its interval, and the p value; dashes if there is no comparison."""
    if difference is None:
        return [Cell(NOTHING), Cell(NOTHING)]
    interval, p_value = difference
    text = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return [Cell(text, interval.value), Cell(f"{p_value:.3f}", p_value)]


def _trial_row(trial: Trial, configuration: Configuration, page: Path) -> Row:
    """Return the row of one trial."""
    target = run_page_of(trial)
    metrics = trial.metrics
    return Row(
        configuration.key,
        [
            Cell(str(trial.number), trial.number, link_to(target, page) if target else ""),
            Cell(configuration.title, configuration.title),
            Cell(str(trial.seed), trial.seed),
            Cell(trial.state, trial.state),
            *(
                Cell(metric_text(metrics.get(name)), defined(metrics.get(name)))
                for name in (AP, "segm/AP50", "bbox/AP")
            ),
            *_cost_cells(*(metrics.get(name) for name in ("trainable_params", "train_seconds", "peak_memory_bytes"))),
        ],
        state=trial.state,
    )


def _cost_cells(params: float | None, seconds: float | None, memory: float | None) -> list[Cell]:
    """Return the cells of trainable parameters, training time and peak memory."""
    return [Cell(count(params), params), Cell(duration(seconds), seconds), Cell(byte_size(memory), memory)]


def _unfinished(trial: Trial, configuration: Configuration, sweep: SweepContents) -> tuple[Trial, str, str]:
    """Return a failed or pruned trial with the title of its configuration and the address of its log."""
    log = Path("logs") / f"{trial.number:04d}.txt"
    return trial, configuration.title, log.as_posix() if (sweep.path / log).is_file() else ""


def _tooltip(configuration: Configuration, sweep: SweepContents) -> Tooltip:
    """Return the facts of a configuration, without undefined ones."""
    interval = configuration.interval
    spread = "" if interval is None else f" ({metric_text(interval.low)} to {metric_text(interval.high)})"
    seeds = (
        ", ".join(metric_text(trial.metrics.get(AP)) for trial in configuration.trials)
        if len(configuration.trials) > 1
        else ""
    )
    facts = [
        Fact("mask AP", f"{metric_text(configuration.ap)}{spread}"),
        Fact("by seed", seeds),
        Fact("trained", count(configuration.mean("trainable_params"))),
        Fact("share of all", formatted(configuration.mean("trainable_percent"), "{:.2f} %")),
        Fact("time", duration(configuration.mean("train_seconds"))),
        Fact("memory", byte_size(configuration.mean("peak_memory_bytes"))),
        *(Fact(name, str(value)) for name, value in configuration.labels.items() if str(value) != configuration.title),
    ]
    return Tooltip(configuration.key, configuration.title, [fact for fact in facts if fact.value not in ("", NOTHING)])
